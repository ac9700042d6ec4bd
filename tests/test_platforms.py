"""Windows, macOS and systems without Triton, as far as another system can stand in for them."""

import ast
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.method_checks import NAMES, SETTINGS, data
from helpers.models import small_model
from helpers.processes import POSIX, python

import fastprompt
from fastprompt import AdvPTTuner, PromptedCLIP, TextContext, load_clip
from fastprompt._utils import files, memory
from fastprompt._utils.files import read_tensors, write_bytes, write_tensors
from fastprompt.data import encoded, tar_shards
from fastprompt.model import compiling

SOURCES = sorted((Path(fastprompt.__file__).parent).rglob("*.py"))
# of the standard library, missing on Windows
MODULES = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "posix", "syslog")
FUNCTIONS = (
    *("fork", "forkpty", "killpg", "mkfifo", "mknod", "nice", "openpty", "sysconf", "uname"),
    *("sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "getgid", "getegid", "chown"),
    *("getpgid", "setsid", "statvfs", "posix_fadvise", "pread", "pwrite", "sync", "initgroups"),
)
SIGNALS = ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGXFSZ", "alarm", "pause", "setitimer")
# these two places work without it
GUARDED = {("memory.py", "sysconf"), ("tar_shards.py", "pread")}

STRANGER = f"""
import os, sys, tempfile
from pathlib import Path
import torch
sys.platform = {{platform!r}}
for name in ("triton", *{{modules}}):
    sys.modules[name] = None
for name in {FUNCTIONS}:
    if hasattr(os, name) and name in {{functions}}:
        delattr(os, name)
import fastprompt
from fastprompt.data import ImageTensors
from fastprompt.kernels import pgd_step

torch.manual_seed(0)
clip = fastprompt.load_clip("tiny-shapes-robust")
images = torch.randint(256, (6, *clip.pixel_shape), dtype=torch.uint8)
shown = ImageTensors(images, torch.arange(6) % 3)
names = ["cat", "dog", "fish"]
tuner = fastprompt.APTTuner(clip, names, epochs=1, steps=1, n_ctx=2, batch=3)
with tempfile.TemporaryDirectory() as folder:
    tuner.fit(shown, shown, out=Path(folder) / "run", progress=False)
    again = fastprompt.APTTuner.load(Path(folder) / "run")
result = again.evaluate(shown, ["clean", "pgd-2"], eps="1/255", sanity="off", progress=False)
try:
    pgd_step(*[images / 255] * 3, eps=0.1, alpha=0.1, impl="triton")
except RuntimeError as error:
    print(error)
print(all(type(m).__module__ != "triton" for m in sys.modules.values() if m), len(result.rows))
"""


@pytest.mark.skipif(not POSIX, reason="fakes other systems than this one")
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_without_triton_and_what_other_systems_lack_a_run_is_tuned(platform):
    """In a process of its own, which has imported torch and open_clip before."""
    lacks = platform == "win32"
    code = STRANGER.format(
        platform=platform, modules=MODULES if lacks else (), functions=FUNCTIONS if lacks else ()
    )
    missing, end = python(code).splitlines()[-2:]
    assert "Triton is not installed" in missing
    assert end == "True 4"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_module_uses_nothing_that_windows_lacks(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {*MODULES}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] not in MODULES
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lacking = {"os": FUNCTIONS, "signal": SIGNALS}.get(node.value.id, ())
            assert node.attr not in lacking or (path.name, node.attr) in GUARDED
        elif isinstance(node, ast.Call):
            assert not _in_the_systems_encoding(node), f"line {node.lineno}: pass 'utf-8'"


def _in_the_systems_encoding(call):
    """Whether a call reads or writes text without naming the encoding."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":  # it would also change the ends of lines
        return True
    own = isinstance(call.func, ast.Name) and name == "open"
    return own and not any("b" in str(getattr(a, "value", "")) for a in call.args[1:])


def test_a_text_without_an_encoding_is_noticed():
    found = [
        _in_the_systems_encoding(ast.parse(code).body[0].value)
        for code in ("p.read_text()", "p.write_text('', 'utf-8')", "open(p)", "open(p, 'w')")
    ]
    assert all(found)
    for code in ("p.read_text('utf-8')", "open(p, 'rb')", "open(p, encoding='utf-8')", "p.open()"):
        assert not _in_the_systems_encoding(ast.parse(code).body[0].value)


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_where_the_system_does_not_tell_its_memory_it_is_assumed(error, monkeypatch, tmp_path):
    def untold(name):
        raise error(name)

    # as on Windows, where there is no such function
    if error is AttributeError:
        monkeypatch.delattr(memory.os, "sysconf", raising=False)
    else:
        monkeypatch.setattr(memory.os, "sysconf", untold, raising=False)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "none")
    assert memory.total_memory(torch.device("cpu")) == 8 * 2**30


def test_tensors_that_were_read_do_not_hold_their_file(tmp_path):
    """Windows replaces no file that is mapped into memory."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.arange(10_000.0)}, {"kind": "test"})
    tensors, _ = read_tensors(path, "test")
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(tensors["a"], torch.arange(10_000.0))


@pytest.mark.parametrize("refusals", [0, 2, 4])
def test_on_windows_a_write_waits_for_a_reader(refusals, tmp_path, monkeypatch):
    calls, waits, replace = [], [], os.replace

    def refusing(old, new):
        calls.append(old)
        if len(calls) <= refusals:
            raise PermissionError(13, "Access is denied")
        replace(old, new)

    fake = SimpleNamespace(**{**vars(os), "name": "nt", "replace": refusing})
    monkeypatch.setattr(files, "os", fake)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    if refusals < 4:
        write_bytes(path, b"new")
    else:
        with pytest.raises(OSError, match="unchanged"):
            write_bytes(path, b"new")
    assert path.read_bytes() == (b"new" if refusals < 4 else b"old")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert waits == [0.01, 0.1, 1.0][:refusals]


def test_elsewhere_a_refused_write_is_an_error_at_once(tmp_path, monkeypatch):
    calls = []

    def refusing(old, new):
        calls.append(old)
        raise PermissionError(13, "Permission denied")

    fake = SimpleNamespace(**{**vars(os), "name": "posix", "replace": refusing})
    monkeypatch.setattr(files, "os", fake)
    with pytest.raises(PermissionError, match="unchanged"):
        write_bytes(tmp_path / "a", b"new")
    assert len(calls) == 1


def test_threads_read_parts_of_a_shard_without_pread(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    content = torch.randint(256, (50_000,), dtype=torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    monkeypatch.delattr(tar_shards.os, "pread", raising=False)
    file = tar_shards._File(path)
    offsets = [*range(0, len(content), 499)]
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda offset: file.read(offset, 499), offsets)
        assert b"".join(parts) == content
    assert file.read(len(content) - 1, 10) == content[-1:]


def test_a_file_on_another_drive_keeps_its_whole_name(tmp_path, monkeypatch):
    def other_drive(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    near = encoded._relative(tmp_path / "a" / "b.png", tmp_path)
    monkeypatch.setattr(encoded.os.path, "relpath", other_drive)
    far = encoded._relative(tmp_path / "a" / "b.png", tmp_path)
    assert (near, far) == ("a/b.png", (tmp_path / "a" / "b.png").resolve().as_posix())


def test_without_triton_nothing_is_compiled_for_a_gpu(monkeypatch):
    clip = load_clip(small_model())
    fake = SimpleNamespace(type="cuda", __str__=lambda self: "cuda:0")
    prompts = TextContext(2, 24)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert compiling.why_uncompiled() == "Triton is not installed"
    monkeypatch.setattr(type(clip), "device", fake)
    with pytest.raises(ValueError, match=r"compile must be False.*Triton is not installed"):
        PromptedCLIP(clip, NAMES, prompts, precision="fp32", compile=True)


def test_names_of_files_in_a_run_folder_are_valid_on_windows(tmp_path):
    shown = data()
    tuner = AdvPTTuner(load_clip(small_model()), NAMES, **SETTINGS["advpt"])
    tuner.fit(shown, shown, out=tmp_path / "run", progress=False)
    attacks = ["clean", "pgd-2", "cw-2:1/255"]
    tuner.evaluate(
        shown, attacks, ["1/255", "2/255"], sanity="off", out=tmp_path / "run", progress=False
    )
    paths = list(tmp_path.rglob("*"))
    assert {"result.json", "examples.safetensors"} <= {path.name for path in paths}
    for path in paths:
        assert not re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', path.name), path
        assert path.stem.lower() not in {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(9))}
        # Windows does not distinguish names by case, nor open longer paths by default
        alike = [p for p in path.parent.iterdir() if p.name.lower() == path.name.lower()]
        assert alike == [path]
        assert len(path.relative_to(tmp_path).as_posix()) < 120
