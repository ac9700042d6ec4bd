"""Hugging Face text models: prompts among their input embeddings, cut to the longest."""

import copy

import pytest
import torch
from helpers.engine_checks import (
    NAMES,
    SINGLE,
    TEMPLATES,
    embedded,
    no_work,
    noise,
    relative,
    sentences,
    text_engines,
)

from fastprompt._utils.attention import plain_attention
from fastprompt.towers import ReferenceTextTower, TextPath, TextTower

pytest.importorskip("transformers")

from helpers.hf_text import MODELS, WIDTH, hf_clip

SPOKEN = [name.replace("_", " ") for name in NAMES]
PATTERNS = {"end": "a photo of a {}.", "middle": "a small {} on grass.", "front": "{} on a table."}


@pytest.mark.parametrize("chunk", [None, 1, 2], ids=lambda c: f"chunk-{c}")
@pytest.mark.parametrize("position", PATTERNS)
@pytest.mark.parametrize("name", MODELS)
def test_engines(name, position, chunk):
    clip = hf_clip(name)
    fast = text_engines(clip, template=TEMPLATES[position], n_prompts=2, class_chunk=chunk)
    assert fast.path is TextPath.INPUT_EMBEDDINGS
    assert fast.length == 1 + 3 + 8 + 2  # start, context, the longest name, period and end
    text_engines(clip, template=TEMPLATES[position], class_specific=True, class_chunk=chunk)


@pytest.mark.parametrize("options", [{"class_specific": True, "n_prompts": 2}, {"n_prompts": 1}])
def test_other_kinds_of_prompts(options):
    text_engines(hf_clip(), **options)


@pytest.mark.parametrize("many", [None, 3])
def test_no_context(many):
    text_engines(hf_clip(), 0, n_prompts=many)


def test_single_precision():
    clip = copy.deepcopy(hf_clip()).float()
    text_engines(clip, n_prompts=2, tolerance=SINGLE)


@pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])
@pytest.mark.parametrize("position", PATTERNS)
@pytest.mark.parametrize("name", MODELS)
def test_words_as_context_give_the_literal_sentence(name, position, engine):
    clip = hf_clip(name)
    pattern = PATTERNS[position]
    context = embedded(clip, pattern.replace("{}", " ").replace(".", ""))
    tower = engine(clip, NAMES, len(context), template=TEMPLATES[position])
    expected = sentences(clip, [pattern.format(name) for name in SPOKEN])
    torch.testing.assert_close(tower(context), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_encode_text_bit_for_bit(name, mode):
    clip = hf_clip(name)
    tower = ReferenceTextTower(clip, NAMES, 0)
    with mode(), plain_attention():
        expected = clip.model.encode_text(clip.tokenizer([f"{n}." for n in SPOKEN]))
        assert torch.equal(tower(torch.zeros(0, WIDTH)), expected)


def test_tokens_that_are_computed():
    clip = hf_clip()
    seen: list[tuple[int, ...]] = []
    layer = clip.model.text.transformer.encoder.layer[0]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    context = noise(2, 3, WIDTH)
    ReferenceTextTower(clip, NAMES, 3, n_prompts=2)(context)
    TextTower(clip, NAMES, 3, n_prompts=2)(context)
    TextTower(clip, NAMES, 3, n_prompts=2, class_chunk=3)(context)
    handle.remove()
    # the reference: every class at full length, prompt by prompt
    assert seen == [(5, 77, WIDTH)] * 2 + [
        (2 * 5, 14, WIDTH),
        (2 * 3, 14, WIDTH),
        (2 * 2, 14, WIDTH),
    ]


def test_bfloat16_is_a_copy_and_as_near_as_a_plain_one():
    clip = copy.deepcopy(hf_clip()).float()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    context = noise(4, 3, WIDTH, dtype=torch.float32)
    exact = ReferenceTextTower(clip, NAMES, 3, n_prompts=4)(context)
    got = TextTower(clip, NAMES, 3, n_prompts=4, dtype=torch.bfloat16)(context)
    after = clip.model.state_dict()
    assert all(
        torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in after
    )
    low = copy.deepcopy(clip).to(torch.bfloat16)
    budget = relative(ReferenceTextTower(low, NAMES, 3, n_prompts=4)(context).float(), exact)
    assert got.dtype == torch.bfloat16
    assert budget > 1e-4  # bfloat16 was there at all
    assert relative(got.float(), exact) <= 2 * budget


@pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])
def test_a_class_reads_its_own_context_alone(engine):
    context = noise(5, 3, WIDTH)
    out = engine(hf_clip(), NAMES, 3, class_specific=True)(context)
    (grad,) = torch.autograd.grad(out[2].square().sum(), context)
    assert (grad.flatten(1).norm(dim=1) > 1e-6).tolist() == [False, False, True, False, False]


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])
def test_deep_prompts_are_refused_with_the_reason(engine):
    clip = hf_clip()
    tower = engine(clip, NAMES, 3)
    with no_work(clip), pytest.raises(ValueError, match=r"^depth .*1.*text tower.*layers"):
        tower(torch.zeros(3, WIDTH), torch.zeros(1, 3, WIDTH))


@pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])
def test_a_depth_of_one_has_no_deep_prompts(engine):
    tower = engine(hf_clip(), NAMES, 3)
    context = noise(3, WIDTH)
    assert torch.equal(tower(context, torch.zeros(0, 3, WIDTH)), tower(context))


@pytest.mark.parametrize("engine", [TextTower, ReferenceTextTower])
def test_a_context_that_does_not_fit(engine):
    clip = hf_clip()
    tower = engine(clip, NAMES, 3)
    with no_work(clip), pytest.raises(ValueError, match=r"^context .*\[3, 24\].*\[2, 24\]"):
        tower(torch.zeros(2, WIDTH))
    with no_work(clip), pytest.raises(ValueError, match=r"^classnames: .* 70 .* 5 .*77"):
        engine(clip, NAMES, 70)
