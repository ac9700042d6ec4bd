"""The text towers: plain sentences, words as context, precision, and what they refuse."""

import copy
import re

import open_clip
import pytest
import torch
from helpers.engine_checks import (
    EXACT,
    TEMPLATES,
    deep_shape,
    embedded,
    frozen,
    no_work,
    noise,
    relative,
    sentences,
    text_clip,
)
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt.towers import ReferenceTextTower, TextTower

NAMES = ["cat", "very_small dog", "a long name of quite a few words"]
SPOKEN = [name.replace("_", " ") for name in NAMES]
CUSTOM = open_clip.CustomTextCLIP
ENGINES = pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])

# settings of the text tower, and whether its padding is masked
TOWERS = {
    "clip": ({}, False),
    "clip-eos": ({"pool_type": "eos", "eos_id": 49407}, False),
    "clip-last": ({"pool_type": "last"}, False),
    "clip-quickgelu": ({"quick_gelu": True}, False),
    "custom": ({"layout": CUSTOM}, False),
    "custom-eos": ({"layout": CUSTOM, "pool_type": "eos", "eos_id": 49407}, False),
    "custom-proj_bias": ({"layout": CUSTOM, "proj_bias": True}, False),
    "custom-no_projection": ({"layout": CUSTOM, "proj_type": "none"}, False),
    "not-causal": ({"layout": CUSTOM, "no_causal_mask": True}, False),
    "not-causal-last": ({"layout": CUSTOM, "no_causal_mask": True, "pool_type": "last"}, False),
    "padding-masked": ({"layout": CUSTOM, "no_causal_mask": True}, True),
}


# ---- plain sentences ---------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize(
    ("position", "words", "sentence"),
    [
        ("end", "a photo of a", "a photo of a {}."),
        ("middle", "a small on grass", "a small {} on grass."),
        ("middle", "a on grass", "a {} on grass."),
        ("front", "on a table", "{} on a table."),
        ("end", "", "{}."),
    ],
    ids=["end", "middle", "middle-odd", "front", "no-context"],
)
@pytest.mark.parametrize("setting", TOWERS)
def test_words_as_context_give_the_literal_sentence(engine, setting, position, words, sentence):
    options, pad_mask = TOWERS[setting]
    clip = text_clip(pad_mask=pad_mask, **options)
    context = embedded(clip, words)
    tower = engine(clip, NAMES, n_ctx=len(context), template=TEMPLATES[position])
    expected = sentences(clip, [sentence.format(name) for name in SPOKEN])
    torch.testing.assert_close(tower(context), expected, rtol=0, atol=1e-12)


@ENGINES
def test_several_prompts_and_contexts_of_a_class(engine):
    clip = text_clip()
    words = [["a photo of a", "the one and only"], ["some very very big", "in front of the"]]
    words.append(["this is not a", "here we have a"])
    contexts = torch.stack([torch.stack([embedded(clip, w) for w in row]) for row in words])
    tower = engine(clip, SPOKEN[:2], n_ctx=4, class_specific=True, n_prompts=3)
    assert tower.context_shape == contexts.shape
    texts = [f"{w} {name}." for row in words for w, name in zip(row, SPOKEN, strict=False)]
    expected = sentences(clip, texts).unflatten(0, (3, 2))
    torch.testing.assert_close(tower(contexts), expected, rtol=0, atol=1e-12)
    shared = engine(clip, SPOKEN, n_ctx=4, n_prompts=3)
    texts = [f"{row[0]} {name}." for row in words for name in SPOKEN]
    expected = sentences(clip, texts).unflatten(0, (3, 3))
    torch.testing.assert_close(shared(contexts[:, 0]), expected, rtol=0, atol=1e-12)


def test_the_prompts_are_cut_to_the_longest():
    clip = text_clip()
    # start, three of context, eight words, period, end
    assert TextTower(clip, NAMES, n_ctx=3).length == 1 + 3 + 8 + 2
    assert TextTower(clip, ["cat"], n_ctx=0).length == 4
    assert TextTower(text_clip(pool_type="last"), NAMES, n_ctx=3).length == 77


@ENGINES
def test_one_prompt_of_several_is_the_prompt_alone(engine):
    clip = text_clip()
    one, many = engine(clip, NAMES, 2), engine(clip, NAMES, 2, n_prompts=1)
    context, deep = noise(2, 24), noise(2, 2, 24, seed=1)
    together = many(context[None], deep[None])
    assert together.shape == (1, 3, 16)
    assert torch.equal(together[0], one(context, deep))


@ENGINES
def test_a_depth_of_one_has_no_deep_prompts(engine):
    tower = engine(text_clip(), NAMES, 2)
    context = noise(2, 24)
    assert torch.equal(tower(context, torch.zeros(0, 2, 24)), tower(context))


# ---- precision ---------------------------------------------------------------------------------

LOW = {
    "causal": ({}, False),
    "causal-custom-proj_bias": ({"layout": CUSTOM, "proj_bias": True}, False),
    "padding-masked": ({"layout": CUSTOM, "no_causal_mask": True}, True),
}


@pytest.mark.parametrize("setting", LOW)
def test_bfloat16_is_a_copy_and_as_near_as_a_plain_one(setting):
    options, pad_mask = LOW[setting]
    clip = copy.deepcopy(text_clip(pad_mask=pad_mask, **options)).float()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    tower = TextTower(clip, NAMES, 3, n_prompts=4, dtype=torch.bfloat16)
    exact_tower = ReferenceTextTower(clip, NAMES, 3, n_prompts=4)
    context = noise(*tower.context_shape, dtype=torch.float32)
    deep = noise(*deep_shape(tower, 2), seed=1, dtype=torch.float32)
    exact, got = exact_tower(context, deep), tower(context, deep)
    after = clip.model.state_dict()
    assert all(
        torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in after
    )
    assert got.dtype == torch.bfloat16
    plain = ReferenceTextTower(copy.deepcopy(clip).to(torch.bfloat16), NAMES, 3, n_prompts=4)
    low = plain(context, deep)
    budget = relative(low.float(), exact)
    assert budget > 1e-4  # bfloat16 was there at all
    assert relative(got.float(), exact) <= 2 * budget
    gradients = [
        torch.autograd.grad(out.float().square().sum(), [context, deep])
        for out in (got, low, exact)
    ]
    for fast, rounded, reference in zip(*gradients, strict=True):
        assert fast.dtype == torch.float32
        assert relative(fast, reference) <= 2 * relative(rounded, reference)


def test_the_weights_own_dtype_makes_no_copy():
    clip = text_clip()
    assert TextTower(clip, NAMES, 3).parts.transformer is clip.model.transformer
    assert (
        TextTower(clip, NAMES, 3, dtype=torch.float64).parts.transformer is clip.model.transformer
    )


@pytest.mark.parametrize("setting", LOW)
@pytest.mark.parametrize("copied", [None, torch.bfloat16], ids=["own-dtype", "bfloat16-copy"])
def test_the_tower_follows_its_models_weights(copied, setting):
    options, pad_mask = LOW[setting]
    clip = copy.deepcopy(text_clip(pad_mask=pad_mask, **options)).float()
    tower = TextTower(clip, NAMES, 3, dtype=copied, class_chunk=2)
    reference = ReferenceTextTower(clip, NAMES, 3)
    context = noise(3, 24)
    before = tower(context)
    clip.double()
    got = tower(context)
    assert got.dtype == (copied or torch.float64)
    error = relative(got.double(), reference(context))
    assert error <= EXACT if copied is None else EXACT < error < 0.1
    clip.load_state_dict({k: v * 1.5 for k, v in clip.state_dict().items()})
    got = tower(context)
    assert relative(got.double(), before.double()) > 0.1
    error = relative(got.double(), reference(context))
    assert error <= EXACT if copied is None else EXACT < error < 0.1


@ENGINES
def test_index_tensors_are_where_the_model_is(engine):
    clip = load_clip(small_model(layers=1))
    tower = engine(clip, NAMES, 3)
    wanted = {"inverse", "chunks.0.ids"} if engine is TextTower else {"ids", "places"}
    assert wanted <= {name for name, _ in tower.named_buffers()}
    clip.to("meta")
    tower.refresh()
    assert all(b.device.type == "meta" for b in tower.buffers())


@ENGINES
def test_a_tower_owns_nothing_of_the_model(engine):
    tower = engine(load_clip(small_model(layers=1)), NAMES, 3)
    assert not tower.state_dict()
    assert not list(tower.parameters())


# ---- bad input ---------------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize(
    ("options", "shape", "wanted"),
    [
        ({}, (3, 24), "[4, 24]"),
        ({}, (4, 23), "[4, 24]"),
        ({}, (1, 4, 24), "[4, 24]"),
        ({"n_prompts": 2}, (4, 24), "[2, 4, 24]"),
        ({"n_prompts": 2}, (3, 4, 24), "[2, 4, 24]"),
        ({"class_specific": True}, (4, 24), "[3, 4, 24]"),
        ({"class_specific": True}, (2, 4, 24), "[3, 4, 24]"),
        ({"class_specific": True, "n_prompts": 2}, (3, 2, 4, 24), "[2, 3, 4, 24]"),
    ],
    ids=str,
)
def test_a_context_of_another_shape(engine, options, shape, wanted):
    clip = text_clip()
    tower = engine(clip, NAMES, 4, **options)
    message = f"^context .*{re.escape(wanted)}.*{re.escape(str(list(shape)))}"
    with no_work(clip), pytest.raises(ValueError, match=message):
        tower(torch.zeros(shape))


@ENGINES
@pytest.mark.parametrize(
    ("many", "shape", "wanted"),
    [
        (None, (1, 3, 24), "[depth - 1, 4, 24]"),
        (None, (1, 4, 23), "[depth - 1, 4, 24]"),
        (None, (4, 24), "[depth - 1, 4, 24]"),
        (None, (2, 1, 4, 24), "[depth - 1, 4, 24]"),
        (2, (1, 4, 24), "[2, depth - 1, 4, 24]"),
        (2, (3, 1, 4, 24), "[2, depth - 1, 4, 24]"),
    ],
    ids=str,
)
def test_deep_prompts_of_another_shape(engine, many, shape, wanted):
    clip = text_clip()
    tower = engine(clip, NAMES, 4, n_prompts=many)
    message = f"^deep .*{re.escape(wanted)}.*{re.escape(str(list(shape)))}"
    with no_work(clip), pytest.raises(ValueError, match=message):
        tower(torch.zeros(tower.context_shape), torch.zeros(shape))


@ENGINES
def test_prompts_deeper_than_the_tower(engine):
    clip = text_clip()
    tower = engine(clip, NAMES, 4)
    assert tower(torch.zeros(4, 24), torch.zeros(2, 4, 24)).shape == (3, 16)
    with no_work(clip), pytest.raises(ValueError, match=r"^depth .*3.*text tower"):
        tower(torch.zeros(4, 24), torch.zeros(3, 4, 24))


@ENGINES
def test_a_name_longer_than_the_context(engine):
    clip = text_clip()
    long = ("word " * 80).strip()
    with no_work(clip), pytest.raises(ValueError, match=r"^classnames: 'word .* 71 .*77"):
        engine(clip, ["cat", long], 4)
    fits = " ".join(["cat"] * 70)
    assert engine(clip, [fits], 4)(torch.zeros(4, 24)).shape == (1, 16)
    message = f"^classnames: '{fits}'.* 71 .* 5 .* 70 .*77.*n_ctx"
    with no_work(clip), pytest.raises(ValueError, match=message):
        engine(clip, ["cat", fits], 5)
    with pytest.raises(ValueError, match=r"^classnames: .* 80 .* 0 .*77"):
        engine(clip, ["cat"], 80)


@ENGINES
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "[ctx] a name"}, r"^template .*'\{\}'.*a name"),
        ({"n_prompts": 0}, "^n_prompts .*1.*0"),
        ({"n_ctx": -1}, "^n_ctx .*0.*-1"),
        ({"classnames": []}, "^classnames .*empty"),
        ({"classnames": ["a cat", "a_cat"]}, "^classnames .*'a_cat'"),
    ],
    ids=["template", "n_prompts", "n_ctx", "no-names", "one-name-twice"],
)
def test_settings_that_do_not_exist(engine, options, message):
    clip = text_clip()
    with no_work(clip), pytest.raises(ValueError, match=message):
        engine(clip, **{"classnames": NAMES, "n_ctx": 4, **options})


def test_a_chunk_of_no_class():
    with pytest.raises(ValueError, match=r"^class_chunk .*1.*0"):
        TextTower(text_clip(), NAMES, 4, class_chunk=0)


UNFIT = {
    "first-of-a-causal-tower": ({"pool_type": "first"}, "causal.*first token"),
    "class-token": ({"embed_cls": True}, "class token"),
    "scaled-cosine": ({"scaled_cosine_attn": True}, "scaled cosine"),
}


@ENGINES
@pytest.mark.parametrize("case", UNFIT)
def test_text_towers_that_take_no_prompts(engine, case):
    options, reason = UNFIT[case]
    clip = frozen(small_model(CUSTOM, **options))
    with no_work(clip), pytest.raises(ValueError, match=f"^clip: .*text.*{reason}"):
        engine(clip, NAMES, 4)


@ENGINES
def test_an_end_token_that_the_tokenizer_never_writes(engine):
    # open_clip's default eos_id of 2 is not its own tokenizer's end token
    clip = text_clip(CUSTOM, pool_type="eos")
    with no_work(clip), pytest.raises(ValueError, match="eos_id"):
        engine(clip, NAMES, 4)


def test_a_class_name_may_hold_the_padding_token():
    # '!' is token 0, which pads as well
    clip = text_clip(CUSTOM, pad_mask=True, no_causal_mask=True)
    names = ["cat", "! bang", "wow !"]
    expected = sentences(clip, [f"a photo of a {n}." for n in names])
    tower = TextTower(clip, names, 4)
    got = tower(embedded(clip, "a photo of a"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
