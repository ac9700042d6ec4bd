"""What a checkpoint declares is compared with its size before torch reads it."""

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch

from fastprompt._utils import unpickling
from fastprompt._utils.unpickling import check_sizes, first_line, read_checkpoint

CONTENT = {
    "state_dict": {"a": torch.arange(999.0), "b": torch.ones(3, dtype=torch.int8)},
    "epoch": 50,
    "seed": 2**62,
    "optimizer": {"state": {0: {"step": 10**9}}, "param_groups": [{"lr": 0.1}]},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "content", [CONTENT, {}, {"a": torch.zeros(0)}], ids=["full", "empty", "no elements"]
)
def test_files_of_torch_are_read(tmp_path: Path, content: dict, zipped: bool) -> None:
    file = tmp_path / "model.pth.tar-50"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    check_sizes(file, "path")
    assert read_checkpoint(file, name="path").keys() == content.keys()


def test_a_zip_bomb_is_refused_before_torch_reads_it(tmp_path: Path, monkeypatch) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(5_000_000)}, whole)
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert file.stat().st_size < 50_000
    monkeypatch.setattr(unpickling.torch, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(ValueError, match=r"^path: .*bomb.pt .*compressed.* torch.save"):
        read_checkpoint(file, name="path")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    start = [b"", b"PK\x03\x04", b"\x80\x02", b"\x89PNG"][seed % 4]
    file = tmp_path / "a.pt"
    file.write_bytes(start + random.Random(seed).randbytes(300))
    with pytest.raises(
        ValueError, match=r"^path: .*a\.pt .*(damaged|checkpoint|pickled?|declares)"
    ):
        read_checkpoint(file, name="path")


def test_torchs_advice_to_run_pickled_code_is_not_repeated() -> None:
    file = io.BytesIO(b"\x80\x02cos\nsystem\nq\0.")
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(file, weights_only=True)
    assert "weights_only" not in first_line(caught.value)
    assert first_line(EOFError()) == "EOFError"


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"^path: .*TorchScript.*state_dict"):
        read_checkpoint(file, name="path")
