"""A step by every rung: the same mathematics, with the work that each rung says."""

import pytest
import torch
from helpers.models import small_model

from benchmarks.common import models, timing
from benchmarks.common.clips import CLIPS
from benchmarks.common.tuner_steps import agreement, counting_text, random_images, tuner_steps
from fastprompt import load_clip

NAMES = ["cat", "small dog", "a long name indeed", "fish", "red circle"]
RUNGS = [rung for rung in CLIPS if rung != "compiled"]
METHODS = {"nap": {}, "capt": {}, "apt": {}, "ampt": {"n_prompts": 2}}


def steps_of(method, rungs=RUNGS, **settings):
    clip = load_clip(small_model())
    data = random_images(3, 48, len(NAMES))
    return tuner_steps(rungs, method, clip, NAMES, data, **{"n_ctx": 4, "steps": 3} | settings)


@pytest.fixture(scope="module")
def nap_steps():
    """Steps whose fast text tower shares the prefix, as it does for many classes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastprompt.towers.text.few_whole", lambda *sizes: False)
        return steps_of("nap")


@pytest.mark.parametrize("method", METHODS)
def test_rungs_of_a_step_agree(method):
    found = timing.gate(agreement(steps_of(method, **METHODS[method])))
    assert set(found) == set(RUNGS[1:])
    for differences in found.values():
        assert {"loss", "first attack gradient"} < set(differences)


def test_a_rung_with_one_weight_changed_is_stopped():
    steps = steps_of("apt")
    with torch.no_grad():
        steps["eager-careful"].tuner.model.text.parts.ln_final.weight[0] *= 2
    results = agreement(steps_of("apt")) | {"changed": agreement(steps)["eager-careful"]}
    with pytest.raises(timing.RungsDifferError, match="changed"):
        timing.gate(results)


def test_rungs_run_the_text_encoder_5_1_1_and_1_times(nap_steps):
    """NAP, PGD-3: clean and adversarial images, and three steps of the attack."""
    counts = {}
    for name, step in nap_steps.items():
        with counting_text(step.tuner.model) as count:
            step()
        counts[name] = dict(count)
    one = len(NAMES) * 77
    assert counts["eager"] == {"forwards": 5, "tokens": 5 * one}
    assert counts["eager-hoisted"] == {"forwards": 1, "tokens": one}
    assert counts["eager-careful"]["forwards"] == 1
    assert counts["eager-careful"]["tokens"] < one / 4
    assert counts["fastprompt"]["forwards"] == 1
    assert counts["fastprompt"]["tokens"] < counts["eager-careful"]["tokens"] / 2


def test_rungs_attack_alike(nap_steps):
    found = {name: step.begin() for name, step in nap_steps.items()}
    images, eager = found["eager"].images, found["eager"].adv
    for step in found.values():
        # signs turn where a gradient is rounding; a step differs there
        assert ((step.adv - eager).abs() > 1e-6).float().mean() < 1e-2
        assert (step.adv - images).abs().max() <= 4 / 255 + 1e-6
        assert (step.adv - images).abs().mean() > 1 / 255


@pytest.mark.parametrize(
    "rungs",
    [
        ("eager", "fastprompt"),
        pytest.param(("eager", "eager-hoisted", "eager-careful"), marks=pytest.mark.slow),
    ],
)
def test_flops_are_counted_before_a_step_has_run_and_without_computing_it(rungs):
    first, second = (steps_of("nap", rungs, steps=1) for _ in range(2))
    for name, step in first.items():
        counted = step.flops()
        assert torch.equal(step(), second[name]())  # nothing without values is left behind
        # the fast one's attention over the prefix is not seen without values
        rel = 0.01 if name == "fastprompt" else 0
        assert counted == pytest.approx(timing.count_flops(step), rel=rel), name


def test_frozen_texts_are_encoded_once_for_all_rungs(monkeypatch):
    clip = models.shared_clip("tiny-shapes", "cpu")
    clip.why_no_text_prompts()  # compares the towers with the model, once
    encode, calls = clip.encode_tokens, []
    monkeypatch.setattr(clip, "encode_tokens", lambda t: calls.append(len(t)) or encode(t))
    data = random_images(2, clip.image_size, 2)
    rungs = ("eager", "eager-hoisted", "fastprompt")
    made = tuner_steps(rungs, "capt", clip, ["cat", "fish"], data, steps=1)
    assert calls == [2]
    texts = [step.tuner.guide.text_features for step in made.values()]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
