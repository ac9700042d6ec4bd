"""Complete prompts of causal encoders: equal to the shared prefix, and chosen for few prompts."""

import open_clip
import pytest
import torch
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt.prompts.refiners import TokenRefiner
from fastprompt.towers import TextTower
from fastprompt.towers.engines import make_text_tower
from fastprompt.towers.text import TextPath
from fastprompt.towers.text_whole import few_whole

NAMES = ["cat", "very small dog", "red circle"]
KINDS = {
    "shared": lambda: small_model(),
    "last": lambda: small_model(open_clip.CustomTextCLIP, pool_type="last"),
}


@pytest.mark.parametrize("options", [{}, {"class_specific": True}, {"n_prompts": 2}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_shared_prefix(kind, options):
    clip = load_clip(KINDS[kind]().double())
    made = [TextTower(clip, NAMES, 2, whole=w, **options) for w in (False, True)]
    assert [t.path for t in made] == [TextPath.SHARED_PREFIX, TextPath.WHOLE_SEQUENCES]
    torch.manual_seed(0)
    context = torch.randn(made[0].context_shape, dtype=torch.float64).requires_grad_()
    many = (2,) if "n_prompts" in options else ()
    deep = torch.randn(*many, 1, 2, 24, dtype=torch.float64).requires_grad_()
    refiner = TokenRefiner(24, start="linear").double()
    inputs = [context, deep, *refiner.parameters()]
    results = []
    for tower in made:
        features = tower(context, deep, [refiner])
        results.append([features, *torch.autograd.grad(features.square().sum(), inputs)])
    for packed, whole in zip(*results, strict=True):
        assert float(packed.detach().norm()) > 1e-6
        assert float(((packed - whole).norm() / packed.norm()).detach()) <= 1e-10


def test_few_short_prompts_are_computed_whole(small_clip):
    few = make_text_tower(small_clip, NAMES, 2)
    assert few.path is TextPath.WHOLE_SEQUENCES
    assert "few and short" in few.describe()
    assert few.length < 10
    many = make_text_tower(small_clip, [*(f"number {i}" for i in range(600)), "word " * 30], 2)
    assert many.path is TextPath.SHARED_PREFIX


def test_the_limit_counts_the_additional_tokens():
    lengths = torch.tensor([8, 10])  # 20 tokens whole, 5 + 3 + 5 with a shared prefix of 5
    wide = 10_000
    assert few_whole(lengths, 5, wide, 3)
    assert not few_whole(lengths, 5, wide, 4)
    assert few_whole(lengths, 5, 100, 4)
