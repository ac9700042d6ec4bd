"""Files are whole or not there, and a damaged one is never read."""

import errno
import json
import os
import pickle
import signal
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastprompt._utils import files
from fastprompt._utils.files import (
    append_line,
    read_json,
    read_tensors,
    remove_temporaries,
    write_bytes,
    write_json,
    write_tensors,
)
from fastprompt._utils.hashing import digest

META = {"kind": "bank", "key": "abc"}


def tensors():
    return {"features": torch.arange(12.0).reshape(3, 4), "labels": torch.tensor([2, 0, 1])}


@pytest.fixture
def file(tmp_path):
    """A good file of kind ``bank``."""
    path = tmp_path / "good.safetensors"
    write_tensors(path, tensors(), META)
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- write_bytes -----------------------------------------------------------------------------


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    write_bytes(path, b"long first content")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read_a_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "whole", b"1")
        append_line(tmp_path / "lines", "1")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path):
    foreign = [".hidden", "a.tmp", ".a.tmp", ".a.json.tmp", ".a.json.0123456.tmp", "notes"]
    for name in (*foreign, ".a.json.0123abcd.tmp", ".b.c.json.k_3zzz9q.tmp"):
        (tmp_path / name).write_bytes(b"1")
    remove_temporaries(tmp_path, "b.c.json")
    assert names(tmp_path) == sorted([*foreign, ".a.json.0123abcd.tmp"])
    remove_temporaries(tmp_path)
    assert names(tmp_path) == sorted(foreign)
    remove_temporaries(tmp_path / "none")


@pytest.fixture
def full_disk():
    """No file grows beyond 1 MiB: the disk fills up in the middle of a write."""
    resource = pytest.importorskip("resource", reason="needs a file size limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("before", [{}, {"a.bin": b"old content"}])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, full_disk, before):
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "a.bin"
    write_bytes(tmp_path / "fits", b"x" * (1 << 20))
    with pytest.raises(OSError, match="fits: File too large"):
        append_line(tmp_path / "fits", "one more")
    with pytest.raises(OSError, match="unchanged") as error:
        write_bytes(path, b"n" * (3 << 20))
    assert error.value.errno == errno.EFBIG
    assert f"{path}: File too large" in str(error.value)
    (tmp_path / "fits").unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken disk"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*arguments):
        assert path.read_bytes() == b"old"
        raise error

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(type(error)) as raised:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]
    if isinstance(error, OSError):
        assert raised.value.errno == errno.EIO
        assert f"{path}: broken disk" in str(raised.value)


def test_data_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def fsynced(handle):
        calls.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def replaced(old, new):
        calls.append(("replace", os.path.getsize(old)))
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", fsynced)
    monkeypatch.setattr(files.os, "replace", replaced)
    write_bytes(tmp_path / "a.bin", b"12345")
    assert calls == [("fsync", 5), ("replace", 5)]


def test_a_folder_that_is_a_file_is_an_os_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_bytes(tmp_path / "file" / "a.bin", b"1")


@pytest.fixture
def denied(tmp_path):
    """Nothing in ``tmp_path`` may be read."""
    tmp_path.chmod(0o700)
    root = os.name == "posix" and os.geteuid() == 0
    if root:  # root may read everything
        os.seteuid(65534)
    else:
        tmp_path.chmod(0)
    yield tmp_path
    if root:
        os.seteuid(0)
    tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_file_that_may_not_be_read_is_not_called_damaged(file, denied):
    with pytest.raises(PermissionError, match=r"could not read .* denied") as error:
        read_tensors(file, "bank")
    assert str(file) in str(error.value)
    with pytest.raises(PermissionError, match="denied"):
        read_json(denied / "a.json")


# ---- JSON ------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None], "name": "größe", "nested": {"x": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_json_cut_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"format": 1, "list": [1, 2]})
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"JSON.* damaged") as error:
            read_json(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind"), [("[1, 2]", "list"), ('"a"', "str"), ("3", "int"), ("null", "NoneType")]
)
def test_json_of_another_kind_is_refused_by_name(tmp_path, text, kind):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"JSON.* {kind}\b") as error:
        read_json(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b"\x80\x04\x95", '{"a": 1}'.encode("utf-16")])
def test_json_that_is_not_utf8_is_refused_by_name(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"JSON.*utf-8") as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_missing_files_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    for path in (tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            read_tensors(path, "bank")


# ---- tensors: round trip ---------------------------------------------------------------------

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_round_trip_bit_for_bit(tmp_path, dtype):
    raw = torch.arange(240, dtype=torch.uint8)
    whole = raw % 2 == 1 if dtype is torch.bool else raw.view(dtype)  # all sorts of bits, NaN too
    given_ = {
        "matrix": whole[:6].reshape(2, 3),
        "view of the same": whole[:12].reshape(3, 4).T,
        "scalar": whole[1],
        "empty": whole[:0],
        "no rows": whole[:0].reshape(0, 7),
    }
    write_tensors(tmp_path / "a.safetensors", given_, META)
    read, metadata = read_tensors(tmp_path / "a.safetensors", "bank")
    assert metadata == META
    assert set(read) == set(given_)
    for name, tensor in given_.items():
        assert read[name].dtype == dtype
        assert read[name].shape == tensor.shape
        old, new = (t.contiguous().flatten().view(torch.uint8) for t in (tensor, read[name]))
        assert torch.equal(old, new)


def test_no_tensors_at_all_round_trip(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {}, META)
    assert read_tensors(tmp_path / "a.safetensors", "bank") == ({}, META)


def test_parameters_are_written_without_their_graph(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    write_tensors(tmp_path / "a.safetensors", {"w": weight}, META)
    read = read_tensors(tmp_path / "a.safetensors", "bank")[0]["w"]
    assert not read.requires_grad
    assert torch.equal(read, weight.detach())


def test_the_digest_sees_names_shapes_types_and_bits():
    base = digest({"a": torch.zeros(2, 3)})
    assert base == digest({"a": torch.zeros(2, 3)})
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(6)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": -torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {},
    ]
    assert len({base, digest({"a": torch.zeros(2, 3)}, "x"), *map(digest, others)}) == 9


# ---- tensors: damage -------------------------------------------------------------------------


def refused(path, match, kind="bank"):
    with pytest.raises(ValueError, match=match) as error:
        read_tensors(path, kind)
    assert str(path) in str(error.value)


def test_a_file_cut_anywhere_is_refused(file):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        refused(file, " safetensors .*remove")


def test_a_file_with_more_behind_its_end_is_refused(file):
    file.write_bytes(file.read_bytes() + b"\0")
    refused(file, " safetensors ")


def header_length(data):
    return 8 + struct.unpack("<Q", data[:8])[0]


def test_one_changed_bit_in_the_data_is_refused(file):
    whole = file.read_bytes()
    begin = header_length(whole)
    assert len(whole) - begin == 12 * 4 + 3 * 8
    for place in range(begin, len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        refused(file, " digest .*remove")


@pytest.fixture
def whole(file):
    return file.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_changed_byte_anywhere_is_refused_or_changes_nothing(file, whole, data):
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        read, metadata = read_tensors(file, "bank")
    except ValueError:
        refused(file, " safetensors | digest |'bank'")
    else:  # as when one blank of the header became another
        assert metadata == META
        assert read.keys() == tensors().keys()
        assert all(torch.equal(read[k], v) for k, v in tensors().items())


@pytest.mark.parametrize(("old", "new"), [(b"abc", b"abd"), (b"key", b"kez")])
def test_changed_metadata_is_refused(file, old, new):
    whole = file.read_bytes()
    assert whole.count(old) == 1
    file.write_bytes(whole.replace(old, new))
    refused(file, " digest ")


def test_a_renamed_tensor_is_refused(file):
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"features", b"featurez"))
    refused(file, " digest ")


def test_equal_contents_are_equal_bytes(file, tmp_path):
    for i in range(5):
        again = tmp_path / f"again{i}.safetensors"
        write_tensors(again, dict(reversed(tensors().items())), dict(reversed(META.items())))
        assert again.read_bytes() == file.read_bytes()


def test_another_kind_is_refused(file):
    refused(file, "'state'.*'bank'", kind="state")


@pytest.mark.parametrize("metadata", [None, {"kind": "bank"}, {"sha256": "0" * 64}])
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file(tensors(), path, metadata)
    refused(path, "'bank'.* None")


def test_a_foreign_file_with_a_digest_of_its_own_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    header = json.dumps(META | {"sha256": digest(tensors())})
    save_file(tensors(), path, {"fastprompt": header})
    refused(path, " digest ")


class Bomb:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", ["pickle", "torch", "numpy", "json"])
def test_other_formats_by_that_name_are_refused_and_never_run(tmp_path, write):
    path, trace = tmp_path / "a.safetensors", tmp_path / "was run"
    with path.open("wb") as file:
        if write == "pickle":
            pickle.dump(Bomb(trace), file)
        elif write == "torch":
            torch.save({"features": Bomb(trace)}, file)
        elif write == "numpy":
            np.save(file, np.array([Bomb(trace)]), allow_pickle=True)
        else:
            file.write(json.dumps({"kind": "bank"}).encode())
    refused(path, " safetensors ")
    assert not trace.exists()
