"""The accuracies of int8 files: counted on the same pictures, and those that the page shows."""

import json

import pytest
from helpers.models import small_model

from benchmarks.common.paths import TWO_CORES
from benchmarks.inference import int8 as module
from fastprompt.clip import bundled


def test_it_counts_what_each_classifies_correctly(tmp_path, monkeypatch, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    monkeypatch.setattr(bundled, "load", lambda name: small_model(image_size=64))
    out = tmp_path / "int8.json"
    module.compare(["tiny-photos"], limit=9, out=str(out))
    (row,) = json.loads(out.read_text())["rows"]
    assert row["pictures"] == 9
    assert row["right"][module.OURS] == row["right"][module.SINGLE]
    assert row["bytes"][module.SMALL] < row["bytes"][module.SINGLE]
    assert "| tiny-photos | 9 |" in capsys.readouterr().out


def test_the_committed_file_has_all_pictures():
    """The float32 file classifies as the classifier does, up to rounding."""
    for row in json.loads((TWO_CORES / "int8.json").read_text("utf-8"))["rows"]:
        card = bundled.card(row["model"])["zero-shot accuracy"]["photos"]
        right = {name: count / row["pictures"] for name, count in row["right"].items()}
        assert row["pictures"] == 800
        assert right[module.OURS] == pytest.approx(card["clean"], abs=0.002)
        assert right[module.SINGLE] == pytest.approx(right[module.OURS], abs=0.002)
