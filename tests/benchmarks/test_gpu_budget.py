"""The estimate of a step: its sum, its page, and a measurement beside it."""

import open_clip
import pytest
from helpers.ladder_files import save

from benchmarks.common.models import class_names
from benchmarks.gpu import budget
from benchmarks.growth.flop_model import flops


def test_the_estimate_is_a_range_of_all_parts():
    low = budget.parts(budget.PUBLISHED, budget.FASTER)
    high = budget.parts(budget.PUBLISHED, budget.SLOWER)
    assert list(low) == list(high)
    assert all(0 < low[name] <= high[name] for name in low)
    assert 0.045 < sum(low.values()) < sum(high.values()) < 0.075
    products = sum(seconds for name, seconds in low.items() if "products" in name)
    assert products == pytest.approx(flops(budget.PUBLISHED) / budget.FASTER.flops)  # none left out


def test_the_names_have_as_many_tokens():
    ids = open_clip.get_tokenizer("ViT-B-16")([f"{name}." for name in class_names(1000)])
    assert int((ids != 0).sum()) - len(ids) == budget.PUBLISHED.suffixes  # without start tokens


def test_a_measurement_stands_beside_the_estimate(tmp_path):
    assert budget.table(tmp_path).count("| not yet measured |") == 1
    rungs = {"fastprompt, bf16": {"median": 0.09}, "fastprompt, bf16, compiled": {"median": 0.0712}}
    save(tmp_path, {"card": "A card", "result": rungs}, "a-card", "gpu-step.json")
    last = next(line for line in budget.table(tmp_path).splitlines() if "whole step" in line)
    assert last.endswith("| 71 ms (A card) |")
