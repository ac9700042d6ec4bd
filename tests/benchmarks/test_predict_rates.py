"""The benchmark of predictions: both sides agree, and the file has their times."""

import json

import pytest
import torch

from benchmarks.common.models import two_layer_clip
from benchmarks.common.timing import RungsDifferError
from benchmarks.inference import measure as module


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "random_clip", lambda name: two_layer_clip())
    monkeypatch.setattr(module, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(module, "THREADS", 1)


def test_it_writes_rates_and_speed_ups(small, tmp_path, capsys):
    out = tmp_path / "predict.json"
    module.measure(["ViT-B-32"], images=5, batch=2, rounds=2, workers=1, out=str(out))
    (row,) = json.loads(out.read_text())["rows"]
    assert row["seconds"].keys() == {module.BASELINE, module.FAST, module.LOW, module.DECODE}
    assert row["errors"][module.FAST]["probabilities"] < 1e-5
    assert "/s)" in capsys.readouterr().out
    head, line = module.lines(json.loads(out.read_text()))
    assert len(head) == len(line)


def test_others_than_the_loops_are_not_timed(small, tmp_path, monkeypatch):
    loop = module._loop
    monkeypatch.setattr(module, "_loop", lambda *a: loop(*a) + torch.eye(100)[:5])
    with pytest.raises(RungsDifferError):
        module.measure(["ViT-B-32"], images=5, batch=2, out=str(tmp_path / "a.json"))
