"""APT: the cross-entropy of adversarial images, through one text context."""

import open_clip
import pytest
import torch
from helpers.method_checks import (
    NAMES,
    agree,
    clip_of,
    cross_entropy,
    first_step,
    gradients,
    logits_of,
    reference_of,
    relative,
    tuner_of,
)
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt.methods.apt import APTConfig, APTTuner

OPTIONS = {"shared": {}, "own_contexts": {"class_specific": True}, "words": {"ctx_init": "a photo"}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_equals_its_formula(options):
    tuner = tuner_of("apt", **options)
    step = first_step(tuner)
    slow = cross_entropy(logits_of(reference_of(tuner), step.adv), step.labels)
    clean = cross_entropy(logits_of(reference_of(tuner), step.images), step.labels)
    assert relative(clean, slow) > 1e-3  # so that the images make a difference
    agree(tuner.prompts, tuner.loss(step), slow)


def test_a_class_reads_its_own_context():
    tuner = tuner_of("apt", class_specific=True)
    assert tuner.prompts.tokens.shape == (len(NAMES), 3, 24)
    before = tuner.model.class_features()
    with torch.no_grad():
        tuner.prompts.tokens[2] *= 2
    moved = (tuner.model.class_features() - before).norm(dim=1)
    assert (moved > 1e-6).tolist() == [False, False, True, False, False]


def test_own_contexts_that_are_equal_give_the_shared_ones_loss():
    own, shared = tuner_of("apt", class_specific=True), tuner_of("apt")
    with torch.no_grad():
        own.prompts.tokens.copy_(shared.prompts.tokens)
    ours, theirs = first_step(own), first_step(shared)
    assert torch.equal(ours.adv, theirs.adv)
    losses = own.loss(ours), shared.loss(theirs)
    assert relative(*losses) <= 1e-12
    each = gradients(own.prompts, losses[0])["tokens"]
    together = gradients(shared.prompts, losses[1])["tokens"]
    assert relative(each.sum(dim=0), together) <= 1e-10


def test_own_contexts_serve_no_other_classes():
    tuner = tuner_of("apt", class_specific=True)
    with pytest.raises(ValueError, match=r"^classnames .*context"):
        tuner.classifier_for(["horse", "cow"])
    assert tuner.classifier_for(NAMES)
    assert tuner_of("apt").classifier_for(["horse", "cow"]).text_features.shape == (2, 16)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own_contexts"])
def test_the_context_starts_from_words(own):
    clip = clip_of()
    tokens = clip.tokenizer(["a photo"])[0]
    words = clip.text_parts.token_embedding(tokens[1:3])
    tuner = tuner_of("apt", perturbed=0, ctx_init="a photo", class_specific=own)
    noise = tuner_of("apt", perturbed=0, class_specific=own).prompts.tokens
    contexts = tuner.prompts.tokens if own else tuner.prompts.tokens[None]
    assert all(torch.equal(context[:2], words) for context in contexts)
    assert torch.equal(tuner.prompts.tokens[..., 2:, :], noise[..., 2:, :])


# ---- bad input -------------------------------------------------------------------------------

REFUSED = {
    "steps": ({"steps": 0}, "^steps .*1.* 0"),
    "n_ctx": ({"n_ctx": 0}, "^n_ctx .*1.* 0"),
    "eps": ({"eps": 4}, "^eps .*1.* 4/255"),
    "eps_zero": ({"eps": 0}, "^eps .*0.* 0"),
    "eps_min": ({"eps": "1/255", "eps_min": "2/255"}, r"^eps_min .*eps.* 0\.0078"),
    "eps_min_negative": ({"eps_min": -0.1}, r"^eps_min .*0.* -0\.1"),
    "alpha": ({"alpha": 0}, "^alpha .*0.* 0"),
    "crop_min": ({"crop_min": 2}, "^crop_min .*1.* 2"),
    "crop_min_zero": ({"crop_min": 0}, "^crop_min .*0.* 0"),
    "workers": ({"workers": -1}, "^workers .*0.* -1"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_out_of_range_are_refused(options, message, small_clip):
    with pytest.raises(ValueError, match=message):
        APTConfig(**options)
    with pytest.raises(ValueError, match=message):
        APTTuner(small_clip, NAMES, **options)


@pytest.mark.parametrize("words", ["", "   "], ids=["empty", "blank"])
def test_a_context_of_no_words_is_refused(words, small_clip):
    with pytest.raises(ValueError, match=r"^ctx_init .*word"):
        APTTuner(small_clip, NAMES, ctx_init=words)


def test_of_many_words_the_first_tokens_are_taken():
    tuners = [tuner_of("apt", perturbed=0, n_ctx=2, ctx_init=w) for w in ("a photo of", "a photo")]
    assert torch.equal(tuners[0].prompts.tokens, tuners[1].prompts.tokens)


def test_a_text_tower_that_takes_no_prompts_is_refused():
    clip = load_clip(small_model(open_clip.CustomTextCLIP, pool_type="first"))
    with pytest.raises(ValueError, match=r"^clip.*apt .*first token"):
        APTTuner(clip, NAMES)
