"""Models are made once, and class names are as they are in real use."""

import pytest
import torch

from benchmarks.common import models


@pytest.mark.parametrize("n", [1, 200, 21_000])
def test_names_are_distinct_and_short_and_the_same_each_time(n):
    names = models.class_names(n)
    assert names == models.class_names(n)
    assert len(set(names)) == len(names) == n
    assert {len(name.split()) for name in names} <= {1, 2, 3, 4}


def test_models_are_made_once_however_they_are_asked_for():
    one = models.shared_clip("tiny-shapes", "cpu")
    assert models.shared_clip("tiny-shapes", "cpu", double=False) is one
    assert models.shared_clip(name="tiny-shapes", device="cpu") is one
    double = models.shared_clip("tiny-shapes", "cpu", double=True)
    assert double is models.shared_clip("tiny-shapes", "cpu", double=True)
    assert (one.dtype, double.dtype) == (torch.float32, torch.float64)
