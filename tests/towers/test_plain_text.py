"""Zero-shot class features: fast where the tower is exact, the model's own features elsewhere."""

from typing import Any

import open_clip
import pytest
import torch
from helpers.altered import altered
from helpers.models import small_model
from torch import Tensor

from fastprompt import FrozenCLIP, load_clip
from fastprompt.towers.plain_text import encode_plain

NAMES = ["cat", "very small dog", "red circle"]
FORMS = ["a photo of a {}.", "{}", "{} in a picture"]
KINDS = {
    "shared": lambda: small_model(),
    "custom": lambda: small_model(open_clip.CustomTextCLIP),
    "whole": lambda: small_model(open_clip.CustomTextCLIP, no_causal_mask=True),
}


def encoded(clip: FrozenCLIP, engine: str, names: list[str], form: str) -> Tensor:
    tokens = clip.name_tokens(names, form)
    return encode_plain(clip, tokens) if engine == "fast" else clip.encode_tokens(tokens)


def features(clip: FrozenCLIP, engine: str, names: list[str] = NAMES) -> Tensor:
    return torch.stack([encoded(clip, engine, names, form) for form in FORMS])


def tokens_of(clip: FrozenCLIP, engine: str) -> int:
    """Number of tokens that enter the first block's MLP."""
    count = [0]

    def hook(_: object, args: tuple[Tensor, ...]) -> None:
        count[0] += args[0].numel() // args[0].shape[-1]

    block: Any = clip.text_parts.transformer.resblocks[0]
    handle = block.ln_2.register_forward_pre_hook(hook)
    clip.zero_shot(NAMES, FORMS[0], engine=engine)
    handle.remove()
    return count[0]


@pytest.mark.parametrize("names", [NAMES, ["cat"], ["cat", "cat " * 60]], ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_models_own_features(kind, names):
    clip = load_clip(KINDS[kind]().double())
    fast, own = (features(clip, engine, names) for engine in ("fast", "reference"))
    assert not fast.requires_grad
    assert ((fast - own).norm(dim=-1) / own.norm(dim=-1)).max() <= 1e-10
    texts = [FORMS[0].format(name) for name in names]
    assert torch.equal(own[0], clip.encode_text(texts))


def test_computes_no_padding(small_clip):
    length = small_clip.context_length
    assert tokens_of(small_clip, "reference") == len(NAMES) * length
    # one text at full length, which the tower is compared with
    assert tokens_of(small_clip, "fast") < length + 40


@pytest.mark.parametrize("name", ["text-hook", "encode_text", "lora-mlp", "block-hook"])
def test_altered_models_keep_their_own_features(name):
    model = altered(name)
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    clip = load_clip(model, tokenizer=tokenizer, mean=[0.5] * 3, std=[0.5] * 3)
    fast, own = (features(clip, engine) for engine in ("fast", "reference"))
    torch.testing.assert_close(fast, own, rtol=1e-9, atol=1e-9)


def test_what_changes_after_the_model_was_loaded_has_its_effect(monkeypatch):
    clip = load_clip(small_model())
    before = clip.zero_shot(NAMES).text_features
    model: Any = clip.model
    handle = model.transformer.resblocks[0].register_forward_hook(lambda m, a, out: 1.5 * out)
    hooked = clip.zero_shot(NAMES).text_features
    assert torch.equal(hooked, clip.zero_shot(NAMES, engine="reference").text_features)
    assert not torch.allclose(hooked, before, atol=1e-3)
    handle.remove()
    own = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda tokens: own(tokens).roll(1, dims=-1))
    assert torch.allclose(clip.zero_shot(NAMES).text_features, before.roll(1, dims=-1), atol=1e-6)
