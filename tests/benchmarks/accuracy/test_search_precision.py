"""The comparison of searches in two precisions."""

import torch
from torch import nn

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
