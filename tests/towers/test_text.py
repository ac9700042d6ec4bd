"""The trimmed text tower against open_clip's own encode_text on all 77 tokens."""

import open_clip
import pytest
import torch
from conftest import small_model

from fastprompt import load_clip
from fastprompt.clip import plain_attention
from fastprompt.towers import TextTower

NAMES = ["cat", "very_small dog", "a long name of quite a few words"]


def word_context(clip, words):
    """The token embeddings of a phrase: with them the tower must equal plain text."""
    tokens = clip.tokenizer([words])[0]
    n = int(tokens.argmax()) - 1
    return clip.text_parts.token_embedding(tokens[1 : n + 1]).detach()


@pytest.mark.parametrize("layout", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("options", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_equals_encode_text_where_the_context_is_words(layout, options):
    clip = load_clip(small_model(layout, **options).double())
    context = word_context(clip, "a photo of a")
    assert len(context) == 4
    tower = TextTower(clip, NAMES, n_ctx=4)
    assert tower.length < 20
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    with plain_attention():
        expected = clip.model.encode_text(clip.tokenizer(prompts))
    torch.testing.assert_close(tower(context), expected, rtol=0, atol=1e-12)


def test_each_context_token_matters(small_clip):
    tower = TextTower(small_clip, NAMES, n_ctx=3)
    context = torch.zeros(3, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(tower(context).square().sum(), context)
    assert (grad.norm(dim=1) > 1e-6).all()


def test_projection_as_linear_layer_and_none():
    for options in ({"proj_bias": True}, {"proj_type": "none"}):
        model = small_model(open_clip.CustomTextCLIP, **options).double()
        clip = load_clip(model)
        tower = TextTower(clip, NAMES, n_ctx=4)
        prompts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
        with plain_attention():
            expected = clip.model.encode_text(clip.tokenizer(prompts))
        got = tower(word_context(clip, "a photo of a"))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_name_longer_than_the_context(small_clip):
    long = "word " * 80
    with pytest.raises(ValueError, match=r"classnames: 'word .* leave room for 71 of 77"):
        TextTower(small_clip, ["cat", long.strip()], n_ctx=4)
    fits = " ".join(["cat"] * 70)
    assert TextTower(small_clip, [fits], n_ctx=4).length == 77
    with pytest.raises(ValueError, match="shorten the name or lower n_ctx"):
        TextTower(small_clip, [fits], n_ctx=5)


def test_wrong_context_shape_and_unfit_towers(small_clip):
    with pytest.raises(ValueError, match=r"context must be \[4, 24\]"):
        TextTower(small_clip, NAMES, n_ctx=4)(torch.zeros(3, 24))
    first = load_clip(small_model(open_clip.CustomTextCLIP, pool_type="first"))
    with pytest.raises(ValueError, match=r"takes no text prompts: .* which no prompt reaches"):
        TextTower(first, NAMES, n_ctx=4)


def test_word_context_is_the_words_embeddings(small_clip):
    tower = TextTower(small_clip, NAMES, n_ctx=4)
    assert torch.equal(tower.word_context("a photo of a"), word_context(small_clip, "a photo of a"))
    assert torch.equal(tower.word_context("a photo"), word_context(small_clip, "a photo"))
    longer = word_context(small_clip, "a photo of a cat")
    assert torch.equal(tower.word_context("a photo of a cat"), longer[:4])
    with pytest.raises(ValueError, match="ctx_init must hold a word"):
        tower.word_context(" ")
