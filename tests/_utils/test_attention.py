"""The attention that is written out on the CPU, held to PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from fastprompt._utils.attention import attend, causal_mask


def theirs(q, k, v, mask=None):
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2)


@pytest.mark.parametrize("shape", [(5, 2, 4), (3, 7, 2, 8), (2, 3, 6, 3, 16)])
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients_are_those_of_pytorch(shape, causal):
    q, k, v = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    mask = causal_mask(shape[-3], q) if causal else None
    cotangent = torch.randn(shape, dtype=torch.float64)
    found = [
        (out, *torch.autograd.grad(out, (q, k, v), cotangent))
        for out in (attend(q, k, v, mask), theirs(q, k, v, mask))
    ]
    for ours, want in zip(*found, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-13)


def test_fewer_queries_than_keys():
    q, k, v = (torch.randn(2, n, 3, 8, dtype=torch.float64) for n in (1, 9, 9))
    torch.testing.assert_close(attend(q, k, v), theirs(q, k, v), rtol=1e-12, atol=1e-13)


def test_bfloat16_is_rounded_as_its_products_are():
    """The scores are rounded once more than in PyTorch, which converts them to float32."""
    q, k, v = torch.randn(3, 4, 20, 3, 32, generator=torch.Generator().manual_seed(0))
    low = [x.bfloat16() for x in (q, k, v)]
    want = theirs(*(x.double() for x in low))
    ours = attend(*low)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - want).norm() / want.norm() < 2**-7
