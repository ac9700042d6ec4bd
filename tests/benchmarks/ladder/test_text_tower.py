"""The gate stops a text tower that computes something else."""

import pytest
import torch
from helpers.models import small_model

from benchmarks.common import timing
from benchmarks.ladder import text_tower
from fastprompt import load_clip

NAMES = ["cat", "small dog", "a long name indeed", "fish", "red circle"]


def test_the_gate_stops_a_text_tower_with_one_weight_changed():
    clip, other = load_clip(small_model()), load_clip(small_model())
    with torch.no_grad():
        other.text_parts.transformer.resblocks[1].mlp.c_fc.weight[0] *= 2
    right = text_tower.Rung("eager", clip, NAMES, 4)
    assert timing.gate({"eager": right(), "ours": text_tower.Rung("fastprompt", clip, NAMES, 4)()})
    wrong = text_tower.Rung("fastprompt", other, NAMES, 4)
    with pytest.raises(timing.RungsDifferError):
        timing.gate({"eager": right(), "ours": wrong()})
