"""CAPT: adversarial prompts held to their own clean logits and to the frozen model's."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.method_checks import (
    EXACT,
    NAMES,
    agree,
    clip_of,
    cosine_logits,
    cross_entropy,
    first_step,
    gradients,
    log_probabilities,
    logits_of,
    reference_of,
    relative,
    tuner_of,
)
from helpers.models import resnet

from fastprompt.methods.capt import CAPTConfig, CAPTTuner, confidence

ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """``KL(p || q) = sum p (log p - log q)`` of one image's logits."""
    log_p, log_q = log_probabilities(p), log_probabilities(q)
    return sum(log_p[c].exp() * (log_p[c] - log_q[c]) for c in range(len(p)))


def towards(direction: str, adv: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return divergence(adv, target) if direction == "adv||target" else divergence(target, adv)


def frozen_logits(tuner, images: torch.Tensor) -> list[torch.Tensor]:
    """Of the untouched model, by open_clip's own encoders."""
    clip, template = tuner.clip, tuner.config.guide_template
    text = clip.encode_text([template.format(name.replace("_", " ")) for name in NAMES])
    with torch.no_grad():
        return cosine_logits(clip, clip.encode_image(images), text)


def slow_alphas(tuner, frozen: list[torch.Tensor], labels, progress: float) -> list[float]:
    """One for each image, as the settings' docstring has it."""
    config = tuner.config
    right = [float(z.exp()[y] / z.exp().sum()) for z, y in zip(frozen, labels, strict=True)]
    return {
        "constant": [config.balance_value] * len(labels),
        "linear": [progress] * len(labels),
        "confidence": [sum(right) / len(right)] * len(labels),
    }[config.balance]


def slow_loss(tuner, step, epoch: int) -> torch.Tensor:
    config, model = tuner.config, reference_of(tuner)
    adv, clean = (logits_of(model, x) for x in (step.adv, step.images))
    frozen = frozen_logits(tuner, step.images)
    alphas = slow_alphas(tuner, frozen, step.labels, epoch / config.epochs)
    loss = cross_entropy(adv if config.ce == "adv" else clean, step.labels)
    terms = []
    for i, alpha in enumerate(alphas):
        target = clean[i].detach() if config.detach_targets else clean[i]
        train = towards(config.train_kl, adv[i], target)
        terms.append((1 - alpha) * train + alpha * towards(config.frozen_kl, adv[i], frozen[i]))
    return loss + config.lam * sum(terms) / len(terms)


OPTIONS = {
    "default": {},
    "constant": {"balance": "constant", "balance_value": 0.3},
    "train_alone": {"balance": "constant", "balance_value": 0.0},
    "frozen_alone": {"balance": "constant", "balance_value": 1.0},
    "linear": {"balance": "linear"},
    "lam": {"lam": 2.5},
    "adv_ce": {"ce": "adv"},
    "train_target_first": {"train_kl": "target||adv"},
    "frozen_target_first": {"frozen_kl": "target||adv"},
    "learning_targets": {"detach_targets": False},
    "learning_targets-first": {"detach_targets": False, "train_kl": "target||adv"},
    "learning_targets-adv_ce": {"detach_targets": False, "ce": "adv"},
    "guide": {"guide_template": "a {} on grass"},
    "depth_1": {"depth": 1},
    "not_augmented": {"augment": False},
}


def test_the_default_guide_is_recorded():
    assert tuner_of("capt").config.guide_template == "a photo of a {}."
    assert CAPTTuner.settings_from(["{} texture."]) == {"guide_template": "{} texture."}
    assert CAPTTuner.settings_from(["a {}.", "the {}."]) == {}


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_equals_its_formula(options, epoch):
    tuner = tuner_of("capt", **options)
    step = first_step(tuner, epoch)
    agree(tuner.prompts, tuner.loss(step), slow_loss(tuner, step, epoch))


@pytest.mark.parametrize("option", [o for o in OPTIONS if o not in ("default", "depth_1")])
def test_every_option_changes_the_gradient(option):
    """Also where it leaves the loss alone."""
    grads = []
    for options in (OPTIONS["default"], OPTIONS[option]):
        tuner = tuner_of("capt", **options)
        grads.append(gradients(tuner.prompts, tuner.loss(first_step(tuner)))["tokens"])
    assert relative(*grads) > 1e-6


def test_without_consistency_it_is_plain_adversarial_tuning():
    tuner = tuner_of("capt", lam=0, ce="adv")
    step = first_step(tuner)
    plain = F.cross_entropy(reference_of(tuner)(step.adv), step.labels)
    agree(tuner.prompts, tuner.loss(step), plain)


@ENGINES
def test_the_guide_is_the_untouched_model(engine):
    """Whatever the prompts are, and after tuning too."""
    tuner = tuner_of("capt", engine)
    step = first_step(tuner)
    wanted = torch.stack(frozen_logits(tuner, step.images))
    assert relative(tuner.frozen_logits(step), wanted) <= EXACT
    assert not tuner.frozen_logits(step).requires_grad
    with torch.no_grad():
        for p in tuner.prompts.parameters():
            p += 1
    assert relative(tuner.frozen_logits(step), wanted) <= EXACT
    assert relative(step.clean().logits, wanted) > 1e-3


def test_frozen_features_belong_to_their_images():
    tuner = tuner_of("capt", augment=False)
    rows = 0
    for _, step in tuner.batches(torch.arange(9).flip(0), 0):
        wanted = torch.stack(frozen_logits(tuner, step.images))
        assert relative(tuner.frozen_logits(step), wanted) <= EXACT
        rows += len(step.rows)
    assert rows == 9


# ---- alpha -----------------------------------------------------------------------------------


def test_confidence_is_the_mean_probability_of_the_truth():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    assert float(confidence(logits, torch.tensor([0, 0]))) == pytest.approx(0.625, abs=1e-12)
    assert float(confidence(logits, torch.tensor([0, 1]))) == pytest.approx(0.375, abs=1e-12)
    sure = torch.tensor([[50.0, 0.0]])
    assert float(confidence(sure, torch.tensor([0]))) == pytest.approx(1)


# ---- bad input -------------------------------------------------------------------------------

REFUSED = {
    "lam": ({"lam": -1}, "^lam .*0.* -1"),
    "balance_value": ({"balance_value": 1.5}, r"^balance_value .*0 .*1, .*1\.5"),
    "depth": ({"depth": 0}, "^depth .*1.* 0"),
    "steps": ({"steps": 0}, "^steps .*1.* 0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_out_of_range_are_refused(options, message, small_clip):
    with pytest.raises(ValueError, match=message):
        CAPTConfig(**options)
    with pytest.raises(ValueError, match=message):
        CAPTTuner(small_clip, NAMES, **options)


CHOICES = {
    "balance": "'constant'.*'linear'.*'confidence'",
    "ce": "'adv'.*'clean'",
    "train_kl": r"'adv\|\|target'.*'target\|\|adv'",
    "frozen_kl": r"'adv\|\|target'.*'target\|\|adv'",
}


@pytest.mark.parametrize(("name", "known"), CHOICES.items(), ids=CHOICES)
def test_an_unknown_choice_is_refused(name, known, small_clip):
    with pytest.raises(ValueError, match=f"^{name} .*{known}.*'both'"):
        CAPTConfig(**{name: "both"})
    with pytest.raises(ValueError, match=f"{name}.*both"):
        CAPTTuner(small_clip, NAMES, **{name: "both"})


def test_a_depth_that_a_tower_lacks_is_refused(bundled_clip):
    with pytest.raises(ValueError, match=r"^depth .* 4 \(text\).* 6 \(image\).* 5"):
        CAPTTuner(bundled_clip, NAMES, depth=5)
    with pytest.raises(ValueError, match=r"^depth .*1\b.*\b2 .*CLIP.* 3"):
        CAPTTuner(clip_of(), NAMES, depth=3)


def test_a_tower_that_takes_no_visual_prompts_is_refused():
    with pytest.raises(ValueError, match=r"^clip.*capt .* ModifiedResNet"):
        CAPTTuner(resnet(), NAMES)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"], ids=["no_place", "two_places"])
def test_a_guide_without_one_place_for_the_name_is_refused(template):
    with pytest.raises(ValueError, match=r"^guide_template .*'\{\}'"):
        tuner_of("capt", guide_template=template)
