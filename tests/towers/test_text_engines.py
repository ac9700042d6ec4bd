"""The fast text tower against the reference: features and the gradient of every learnable."""

import copy

import open_clip
import pytest
import torch
from helpers.engine_checks import (
    ARCHITECTURES,
    BLOCK_OPTIONS,
    EXACT,
    NAMES,
    SINGLE,
    TEMPLATES,
    architecture,
    counted_rows,
    frozen,
    noise,
    relative,
    text_clip,
    text_engines,
)
from helpers.models import small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprompt.towers import ReferenceTextTower, TextPath, TextTower

POSITIONS = tuple(TEMPLATES)
# every kind of prompt: (class-specific, prompts encoded together, depth)
KINDS = {
    "shared": (False, None, 1),
    "shared-deep": (False, None, 3),
    "several": (False, 3, 1),
    "several-deep": (False, 2, 3),
    "class-specific": (True, None, 1),
    "class-specific-deep": (True, None, 3),
    "several-class-specific-deep": (True, 2, 2),
}
CUSTOM = open_clip.CustomTextCLIP
CAUSAL = {
    "clip-argmax": {},
    "clip-eos": {"pool_type": "eos", "eos_id": 49407},
    "clip-last": {"pool_type": "last"},
    "clip-quickgelu": {"quick_gelu": True},
    "custom-argmax": {"layout": CUSTOM},
    "custom-eos": {"layout": CUSTOM, "pool_type": "eos", "eos_id": 49407},
    "custom-last": {"layout": CUSTOM, "pool_type": "last"},
    "custom-quickgelu": {"layout": CUSTOM, "quick_gelu": True},
    "custom-proj_bias": {"layout": CUSTOM, "proj_bias": True},
    "custom-no_projection": {"layout": CUSTOM, "proj_type": "none"},
}
POOLS = {
    "argmax": {"pool_type": "argmax"},
    "eos": {"pool_type": "eos", "eos_id": 49407},
    "first": {"pool_type": "first"},
    "last": {"pool_type": "last", "proj_bias": True},
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, kind, position):
    specific, many, depth = KINDS[kind]
    fast = text_engines(
        architecture(name),
        names=NAMES[:3],
        template=TEMPLATES[position],
        class_specific=specific,
        n_prompts=many,
        depth=depth,
    )
    assert fast.path == (
        TextPath.WHOLE_SEQUENCES if name == "siglip-like" else TextPath.SHARED_PREFIX
    )


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("setting", CAUSAL)
def test_causal_towers(setting, position):
    clip = text_clip(**CAUSAL[setting])
    fast = text_engines(clip, template=TEMPLATES[position], n_prompts=2, depth=3)
    assert fast.path is TextPath.SHARED_PREFIX
    text_engines(clip, template=TEMPLATES[position], class_specific=True, class_chunk=2)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pad_mask", [False, True], ids=["attends-to-padding", "padding-masked"])
@pytest.mark.parametrize("pool", POOLS)
def test_towers_without_a_causal_mask(pool, pad_mask, position):
    clip = text_clip(CUSTOM, pad_mask=pad_mask, no_causal_mask=True, **POOLS[pool])
    fast = text_engines(clip, template=TEMPLATES[position], n_prompts=2, depth=3)
    assert fast.path is TextPath.WHOLE_SEQUENCES
    # padding may be cut only where nothing attends to it and nobody reads it
    assert (fast.length < 77) == (pad_mask and pool != "last")
    text_engines(clip, template=TEMPLATES[position], class_specific=True, class_chunk=2)


def test_without_a_causal_mask_in_the_clip_layout():
    clip = text_clip(open_clip.CLIP, no_causal_mask=True)
    assert text_engines(clip, depth=2).path is TextPath.WHOLE_SEQUENCES


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not-causal"])
@pytest.mark.parametrize("option", BLOCK_OPTIONS)
def test_block_options(option, causal):
    clip = text_clip(CUSTOM, no_causal_mask=not causal, **BLOCK_OPTIONS[option])
    block = clip.model.text.transformer.resblocks[0]
    assert type(block).__name__ == (
        "ResidualAttentionBlock" if option == "ls_init_value" else "CustomResidualAttentionBlock"
    )
    text_engines(clip, template=TEMPLATES["middle"], n_prompts=2, depth=3)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not-causal"])
def test_a_single_layer(causal):
    text_engines(text_clip(CUSTOM, layers=1, no_causal_mask=not causal), n_prompts=2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_single_precision(name):
    clip = copy.deepcopy(architecture(name)).float()
    for position in POSITIONS:
        text_engines(clip, template=TEMPLATES[position], n_prompts=2, depth=3, tolerance=SINGLE)


def test_single_precision_of_class_specific_prompts():
    clip = frozen(small_model(CUSTOM, layers=3), dtype=torch.float32)
    text_engines(clip, class_specific=True, depth=3, tolerance=SINGLE)


@pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not-causal"])
def test_a_class_reads_its_own_context_alone(causal, engine):
    context = noise(5, 3, 24)
    clip = text_clip(CUSTOM, no_causal_mask=not causal)
    out = engine(clip, NAMES, 3, class_specific=True)(context)
    (grad,) = torch.autograd.grad(out[2].square().sum(), context)
    assert (grad.flatten(1).norm(dim=1) > 1e-6).tolist() == [False, False, True, False, False]


# ---- drawn settings ----------------------------------------------------------------------------

WORDS = ["cat", "small", "dog", "of", "strange", "antidisestablishment", "st.", "tree!"]


@st.composite
def class_names(draw: st.DrawFn) -> list[str]:
    name = st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join)
    return draw(st.lists(name, min_size=1, max_size=5, unique=True))


@settings(deadline=None, derandomize=True, max_examples=60, database=None)
@given(
    names=class_names(),
    n_ctx=st.integers(0, 8),
    depth=st.integers(1, 2),
    position=st.sampled_from(POSITIONS),
    specific=st.booleans(),
    many=st.sampled_from([None, 1, 2]),
    chunk=st.sampled_from([None, 1, 2, 3, 7]),
    model=st.sampled_from(["causal", "causal-last", "padding-masked", "attends-to-padding"]),
)
def test_drawn_prompts(names, n_ctx, depth, position, specific, many, chunk, model):
    small = {"layers": 2, "width": 12}
    clip = {
        "causal": lambda: text_clip(**small),
        "causal-last": lambda: text_clip(CUSTOM, pool_type="last", **small),
        "padding-masked": lambda: text_clip(CUSTOM, pad_mask=True, no_causal_mask=True, **small),
        "attends-to-padding": lambda: text_clip(CUSTOM, no_causal_mask=True, **small),
    }[model]()
    text_engines(
        clip,
        n_ctx,
        names=names,
        template=TEMPLATES[position],
        class_specific=specific,
        # several prompts without a token have a test of their own
        n_prompts=many if n_ctx else None,
        depth=depth,
        class_chunk=chunk,
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not-causal"])
@pytest.mark.parametrize("specific", [False, True], ids=["shared", "class-specific"])
def test_several_prompts_without_a_token_are_several_features(causal, specific):
    clip = text_clip(CUSTOM, no_causal_mask=not causal)
    options = {"n_prompts": 3, "class_specific": specific}
    fast = TextTower(clip, NAMES, 0, **options)
    context = torch.zeros(fast.context_shape, dtype=torch.float64)
    assert relative(fast(context), ReferenceTextTower(clip, NAMES, 0, **options)(context)) <= EXACT


# ---- what is computed --------------------------------------------------------------------------

# of "cat.", "very small dog.", "a long name of quite a few words.", "fish.", "red circle.": the
# name's tokens, the period and the end token
SUFFIXES = (1 + 2, 3 + 2, 8 + 2, 1 + 2, 2 + 2)


def rows_of(clip, depth=1, **options) -> list[int]:
    tower = TextTower(clip, NAMES, 3, **options)
    context = noise(*tower.context_shape).detach()
    many = () if tower.n_prompts is None else (tower.n_prompts,)
    deep = noise(*many, depth - 1, 3, 24).detach() if depth > 1 else None
    with counted_rows(clip.text_parts.transformer) as rows, torch.no_grad():
        tower(context, deep)
    return rows


@pytest.mark.parametrize("chunk", [None, 1, 2], ids=lambda c: f"chunk-{c}")
def test_the_shared_prefix_is_computed_once_and_names_without_padding(chunk):
    packed = sum(SUFFIXES)
    rows = rows_of(text_clip(), class_chunk=chunk)
    assert rows == [1 + 3 + packed, 1 + 3 + packed, len(NAMES)]


def test_several_prompts_share_nothing_but_the_names():
    packed = sum(SUFFIXES)
    rows = rows_of(text_clip(), n_prompts=2)
    assert rows == [2 * (4 + packed), 2 * (4 + packed), 2 * len(NAMES)]


@pytest.mark.parametrize(
    ("position", "specific", "prefix", "inside"),
    # without context in the prefix, it is computed once for the weights
    [("middle", False, 1 + 1, 2), ("front", False, 0, 3), ("end", True, 0, 3)],
)
def test_context_that_classes_do_not_share_is_packed(position, specific, prefix, inside):
    first = prefix + sum(SUFFIXES) + inside * len(NAMES)
    rows = rows_of(text_clip(), template=TEMPLATES[position], class_specific=specific)
    assert rows == [first, first, len(NAMES)]


def test_context_that_the_next_layer_replaces_is_not_computed():
    packed = sum(SUFFIXES)
    # with prompts of its own in layer 1 and 2, the context leaves neither layer 0 nor layer 1; the
    # start token is computed once for the weights
    assert rows_of(text_clip(layers=4), depth=3) == [packed, packed, 3 + packed, 5]
    assert rows_of(text_clip(layers=4), depth=4) == [packed, packed, packed, 5]


def test_whole_sequences_are_cut_where_padding_is_masked():
    options = {"no_causal_mask": True}
    longest = 1 + 3 + max(SUFFIXES)
    masked = rows_of(text_clip(CUSTOM, pad_mask=True, **options))
    assert masked == [5 * longest, 5 * longest, 5]
    assert rows_of(text_clip(CUSTOM, **options)) == [5 * 77, 5 * 77, 5]


@pytest.mark.parametrize(
    ("options", "path", "tokens"),
    [
        ({}, "shared prefix of 4 tokens", 4 + sum(SUFFIXES)),
        ({"class_chunk": 2}, "shared prefix of 4 tokens", 4 + sum(SUFFIXES)),
        ({"template": TEMPLATES["middle"]}, "shared prefix of 2 tokens", 2 + sum(SUFFIXES) + 2 * 5),
        ({"class_specific": True}, "shared prefix of 1 tokens", 1 + sum(SUFFIXES) + 3 * 5),
    ],
    ids=["end", "chunks", "middle", "class-specific"],
)
def test_the_description_counts_all_tokens(options, path, tokens):
    clip = text_clip()
    once = 1 if "class_specific" in options else 0  # for the weights
    assert rows_of(clip, **options)[0] == tokens - once
    text = TextTower(clip, NAMES, 3, **options).describe()
    assert text.startswith(path)
    assert text.endswith(f"{tokens} tokens, not {5 * 77}")
