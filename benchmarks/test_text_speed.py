"""Class features of the 80 ``shapes`` classes, forward and backward: 77 tokens against trimmed."""

import pytest
import torch

from fastprompt import load_clip, load_data
from fastprompt.towers import ReferenceTextTower, TextTower

N_CTX = 16


@pytest.fixture(scope="module")
def setting():
    clip = load_clip("tiny-shapes")
    names = load_data("shapes").classnames
    context = 0.02 * torch.randn(N_CTX, 96, generator=torch.Generator().manual_seed(0))
    towers = {
        "reference": ReferenceTextTower(clip, names, N_CTX),
        "fastprompt": TextTower(clip, names, N_CTX),
    }
    torch.testing.assert_close(*(t(context) for t in towers.values()), rtol=1e-4, atol=1e-5)
    return towers, context.requires_grad_()


@pytest.mark.benchmark(group="towers/text/c80")
@pytest.mark.parametrize("rung", ["reference", "fastprompt"])
def test_text(benchmark, setting, rung):
    towers, context = setting
    benchmark.extra_info |= {"rung": rung}

    def step():
        return torch.autograd.grad(towers[rung](context).square().sum(), context)

    benchmark.pedantic(step, rounds=7, warmup_rounds=2)
