"""The comparison of searches in two precisions."""

import json
from itertools import product

import torch
from torch import nn

from benchmarks.accuracy import precision
from benchmarks.accuracy.methods.cells import METHODS, MODELS
from benchmarks.accuracy.precision import Emulated, held


def test_emulated_products_are_those_of_bfloat16():
    torch.manual_seed(0)
    linear = nn.Linear(24, 16).bfloat16()
    x = torch.randn(8, 24, dtype=torch.bfloat16, requires_grad=True)
    with Emulated():
        low = linear(x)
        (grad,) = torch.autograd.grad(low.sum(), x)
        assert torch.equal(nn.functional.linear(x.float(), x.float()), x.float() @ x.float().T)
    (wanted,) = torch.autograd.grad(linear(x).sum(), x)
    assert low.dtype == grad.dtype == torch.bfloat16
    ulp = torch.finfo(torch.bfloat16).eps
    # sums may be taken in another order before they are rounded
    torch.testing.assert_close(low, linear(x), rtol=ulp, atol=ulp / 4)
    torch.testing.assert_close(grad, wanted, rtol=ulp, atol=ulp / 4)


def test_one_in_two_hundred():
    row = {"n": 200, "own": 80, "low": 80, "only_low": 1, "only_own": 1}
    assert held(row)
    for worse in ({"only_low": 2}, {"only_own": 2}, {"low": 82}):
        assert not held({**row, **worse})


def test_the_committed_comparison_held():
    rows = json.loads(precision.RESULT.read_text("utf-8"))["rows"]
    assert {(r["model"], r["method"]) for r in rows} == set(product(MODELS, METHODS))
    assert all(held(row) for row in rows)
    assert all(row["n"] == 200 for row in rows)


def test_a_classifier_is_measured_once(tmp_path, monkeypatch):
    measured = []

    def compare(cell, *_):
        measured.append((cell.model, cell.method))
        counts = {"attacked": 9, "own": 4, "low": 4, "only_low": 0, "only_own": 0}
        row = {"model": cell.model, "method": cell.method, "attack": "pgd-2", "eps": 0.1, "n": 9}
        return [row | counts | {"confirmed": {"fell": 0}}]

    monkeypatch.setattr(precision, "_compare", compare)
    file = tmp_path / "result.json"

    def found(**options):
        measured.clear()
        precision.measure(out=str(file), methods=["zero-shot"], **options)
        return [row["model"] for row in json.loads(file.read_text("utf-8"))["rows"]]

    first, second = MODELS
    assert found(models=[first]) == [first]
    assert found() == [first, second]
    assert measured == [(second, "zero-shot")]
    assert found(images=5) == [first, second]
    assert len(measured) == 2
