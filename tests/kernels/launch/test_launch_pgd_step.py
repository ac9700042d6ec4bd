"""The step kernels against the plain code, bit for bit."""

import pytest
import torch
from place import DEVICE, DTYPE_IDS, DTYPES, MARKS, _poisoned  # noqa: F401

from fastprompt.kernels import pgd_step

pytestmark = MARKS


def batch(n=3, size=5, grad_dtype=torch.float32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=gen)
    x_adv = (x + 0.1 * (torch.rand(x.shape, generator=gen) - 0.5)).clamp(0, 1)
    grad = torch.randn(x.shape, generator=gen).to(grad_dtype)
    return tuple(t.to(DEVICE) for t in (x_adv, x, grad))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("size", [1, 3, 63])
def test_equal_bits(size, dtype):
    x_adv, x, grad = batch(2, size, dtype)
    named = {"alpha": 0.02, "eps": 0.04}
    got = pgd_step(x_adv, x, grad, impl="triton", **named)
    assert torch.equal(got, pgd_step(x_adv, x, grad, impl="torch", **named))
