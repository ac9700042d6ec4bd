"""A full disk ends a command with one message; once there is space, it goes on as if undisturbed.

Protocols are tested in tests/protocols.
"""

import errno

import pytest
import torch
from helpers import picture_sources
from helpers.fake_ray import installed
from helpers.kills import contents
from helpers.models import small_model

from fastprompt import APTTuner, load_clip
from fastprompt._utils import files
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.evaluation import model_run

TUNE = [
    *("--device=cpu", "--data=patterns", "--shots=1", "--epochs=2", "--steps=1", "--n_ctx=2"),
    *("--eps=8/255", "--attacks=clean,pgd-1", "--eval_eps=8/255", "--eval_limit=4"),
    *("--eval_batch=2", "--sanity=off"),
]
EVALUATE = [
    *("--data=patterns", "--device=cpu", "--attacks=pgd-1,apgd-ce-2", "--eps=8/255"),
    *("--limit=4", "--batch=2", "--sanity=off"),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    monkeypatch.setattr(model_run, "WINDOW", 1)  # more lines in progress.jsonl


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run, and six pictures."""
    root = tmp_path_factory.mktemp("pictures")
    picture_sources.write(root / "pictures", {"": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        APTTuner(load_clip("tiny-shapes"), ["ant", "bee", "cat"], n_ctx=2).save(root / "run")
    return [str(root / "run"), str(root / "pictures")]


def command(name, folder, pictures, more=()):
    """Start a command in a folder, or resume it, and return its exit code."""
    if name == "predict":
        line = ["predict", *pictures, "--batch=1", "--device=cpu", f"--out={folder}/p.csv"]
        return main([*line, *more])
    first, options, marker = {
        "apt": (["tune", "apt"], [*TUNE, "--batch=3"], "config.json"),
        "advpt": (["tune", "advpt"], [*TUNE, "--attack_batch=1"], "config.json"),
        "evaluate": (["evaluate"], EVALUATE, "job.json"),
    }[name]
    begun = (folder / marker).exists()
    where = [f"--resume={folder}"] if begun else [*options, f"--out={folder}"]
    return main([*first, *where, *more])


class Disk:
    """A disk that is full after so many writes."""

    def __init__(self, patch):
        self._real, self.writes, self.room = files._flush, 0, None
        patch.setattr(files, "_flush", self._flush)

    def _flush(self, file):
        if self.room is not None and self.writes >= self.room:
            file.truncate(max(0, file.tell() - 1))
            raise OSError(errno.ENOSPC, "No space left on device")
        self._real(file)
        self.writes += 1


@pytest.mark.parametrize("name", ["apt", "advpt", "evaluate", "predict"])
def test_a_full_disk_is_one_message_and_the_command_goes_on(
    pictures, tmp_path, monkeypatch, capsys, name
):
    torch.set_num_threads(1)
    disk = Disk(monkeypatch)
    assert command(name, tmp_path / "whole", pictures) == 0
    writes, wanted = disk.writes, contents(tmp_path / "whole")
    assert writes > 5
    for room in (1, writes // 2, writes - 1):
        folder = tmp_path / f"after-{room}"
        disk.writes, disk.room = 0, room
        capsys.readouterr()
        assert command(name, folder, pictures) == 2
        said = [x for x in capsys.readouterr().err.splitlines() if "space" in x or "rror" in x]
        assert len(said) == 1, said
        assert said[0].startswith(f"error: [Errno {errno.ENOSPC}] could not write {folder}")
        assert "No space left on device" in said[0]
        disk.room = None
        assert command(name, folder, pictures) == 0
        assert contents(folder) == wanted, room


@pytest.mark.parametrize("name", ["advpt", "evaluate", "predict"])
def test_a_full_disk_while_workers_compute(pictures, tmp_path, monkeypatch, capsys, name):
    ray, disk = installed(monkeypatch), Disk(monkeypatch)
    assert command(name, tmp_path / "whole", pictures) == 0
    assert not ray.actors
    disk.room = disk.writes + 3
    assert command(name, tmp_path / "out", pictures, ["--ray"]) == 2
    assert "error: [Errno 28] could not write" in capsys.readouterr().err
    assert "do" in ray.calls
    assert not ray.alive
    disk.room = None
    assert command(name, tmp_path / "out", pictures, ["--ray"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not ray.alive
