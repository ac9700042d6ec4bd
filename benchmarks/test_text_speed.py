"""Class features of the 80 ``shapes`` classes, forward and backward: 77 tokens against trimmed."""

import pytest
import torch

from fastprompt import load_clip, load_data
from fastprompt.towers import TextTower

N_CTX = 16


def untrimmed(tower: TextTower) -> TextTower:
    """The same tower with the prompts padded to the whole context, as published code runs it."""
    clip = tower.clip
    names = [f"{n}." for n in load_data("shapes").classnames]
    tokens = clip.tokenizer(names)[:, : clip.context_length - N_CTX]
    tower.length = clip.context_length
    tower.name_tokens = clip.text_parts.token_embedding(tokens).detach()
    return tower


@pytest.fixture(scope="module")
def setting():
    clip = load_clip("tiny-shapes")
    names = load_data("shapes").classnames
    context = 0.02 * torch.randn(N_CTX, 96, generator=torch.Generator().manual_seed(0))
    towers = {
        "77 tokens": untrimmed(TextTower(clip, names, N_CTX)),
        "fastprompt": TextTower(clip, names, N_CTX),
    }
    torch.testing.assert_close(*(t(context) for t in towers.values()), rtol=1e-4, atol=1e-5)
    return towers, context.requires_grad_()


@pytest.mark.benchmark(group="towers/text/c80")
@pytest.mark.parametrize("rung", ["77 tokens", "fastprompt"])
def test_text(benchmark, setting, rung):
    towers, context = setting
    benchmark.extra_info |= {"rung": rung, "tokens": towers[rung].length}

    def step():
        return torch.autograd.grad(towers[rung](context).square().sum(), context)

    benchmark.pedantic(step, rounds=7, warmup_rounds=2)
