"""AMPT: a mixture of prompts for each image and class, and the router that weights them."""

import pytest
import torch
from helpers.method_checks import (
    EXACT,
    NAMES,
    agree,
    cross_entropy,
    first_step,
    gradients,
    image_features,
    perturb,
    reference_of,
    relative,
    scale_of,
    text_features,
    tuner_of,
    unit,
)

from fastprompt.attacks.result import untouched
from fastprompt.methods.ampt import AMPTConfig, AMPTTuner, load_balance

K = 3
ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])
MIXES = pytest.mark.parametrize("mix", ["normalized", "raw"])


def softmax(row: torch.Tensor) -> torch.Tensor:
    return row.exp() / row.exp().sum()


def slow_weights(tuner, features: torch.Tensor) -> list[torch.Tensor]:
    """``softmax(R(f) / T)`` of raw features, one image at a time: B of ``[K]``."""
    router, out = tuner.prompts.head.router, []
    for f in features:
        x = unit(f)
        x = (x - x.mean()) / (x.var(unbiased=False) + router.norm.eps).sqrt()
        x = x * router.norm.weight + router.norm.bias
        x = router.first.weight @ x + router.first.bias
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))  # GELU
        x = router.second.weight @ x + router.second.bias
        out.append(softmax(x / tuner.config.temperature))
    return out


def slow_logits(tuner, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits and routing weights: a text feature of its own for each image and class."""
    model = reference_of(tuner)
    text, features = text_features(model), image_features(model, images)
    weights, logits = slow_weights(tuner, features), []
    for f, w in zip(features, weights, strict=True):
        row = []
        for c in range(len(NAMES)):
            parts = [unit(t) if tuner.config.mix == "normalized" else t for t in text[:, c]]
            mixed = sum(w[k] * parts[k] for k in range(len(parts)))
            row.append(scale_of(tuner.clip) * (unit(f) * unit(mixed)).sum())
        logits.append(torch.stack(row))
    return logits, weights


def slow_loss(tuner, step) -> torch.Tensor:
    config, count = tuner.config, tuner.config.n_prompts
    logits, weights = slow_logits(tuner, step.adv)
    loss = (1 - config.clean_share) * cross_entropy(logits, step.labels)
    if config.clean_share:
        clean, _ = slow_logits(tuner, step.images)
        loss = loss + config.clean_share * cross_entropy(clean, step.labels)
    shares = [sum(w[k] for w in weights) / len(weights) for k in range(count)]
    # the squared coefficient of variation of the prompts' shares
    mean = sum(shares) / count
    variance = sum((share - mean) ** 2 for share in shares) / count
    return loss + config.load_balance * variance / mean**2


OPTIONS = {
    "default": {},
    "temperature": {"temperature": 0.3},
    "router_width": {"router_width": 7},
    "clean_share": {"clean_share": 0.3},
    "clean_alone": {"clean_share": 1.0},
    "load_balance": {"load_balance": 2.0},
    "all": {"clean_share": 0.3, "load_balance": 2.0, "temperature": 0.3},
}


@MIXES
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_equals_its_formula(options, mix):
    tuner = tuner_of("ampt", mix=mix, **options)
    step = first_step(tuner)
    agree(tuner.prompts, tuner.loss(step), slow_loss(tuner, step))


@pytest.mark.parametrize("option", [o for o in OPTIONS if o not in ("default", "router_width")])
def test_every_option_changes_the_loss(option):
    """With the weights of the same router."""
    losses = []
    for options in (OPTIONS["default"], OPTIONS[option]):
        tuner = tuner_of("ampt", **options)
        step = first_step(tuner)
        step.result = untouched((step.images + 0.1).clamp(0, 1))
        losses.append(tuner.loss(step))
    assert relative(losses[0], losses[1]) > 1e-4


def test_the_load_balance_is_the_squared_coefficient_of_variation():
    even = torch.full((4, K), 1 / K, dtype=torch.float64)
    assert load_balance(even.mean(dim=0)).abs() < 1e-12
    each_has_one_image = torch.eye(K)  # alike on the average
    assert load_balance(each_has_one_image.mean(dim=0)).abs() < 1e-6
    one = torch.zeros(5, K, dtype=torch.float64)
    one[:, 1] = 1
    assert load_balance(one.mean(dim=0)) == K - 1
    some = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    shares = some.mean(dim=0)
    wanted = shares.var(unbiased=False) / shares.mean() ** 2
    assert relative(load_balance(some.mean(dim=0)), wanted) < 1e-12


# ---- one prompt is APT -----------------------------------------------------------------------


@ENGINES
@MIXES
def test_a_mixture_of_one_prompt_is_apt(mix, engine):
    one, apt = tuner_of("ampt", engine, n_prompts=1, mix=mix), tuner_of("apt", engine)
    with torch.no_grad():
        one.prompts.tokens[0] = apt.prompts.tokens
    ours, theirs = first_step(one), first_step(apt)
    assert torch.equal(ours.adv, theirs.adv)
    assert relative(ours.attacked().logits, theirs.attacked().logits) <= EXACT
    losses = one.loss(ours), apt.loss(theirs)
    assert relative(*losses) <= EXACT
    wanted = gradients(apt.prompts, losses[1])["tokens"]
    found = dict(one.prompts.named_parameters())
    grads = dict(zip(found, torch.autograd.grad(losses[0], list(found.values())), strict=True))
    assert relative(grads.pop("tokens")[0], wanted) <= EXACT
    # a router of one prompt has nothing to say
    assert all(g.norm() <= 1e-12 * wanted.norm() for g in grads.values())


# ---- the router ------------------------------------------------------------------------------


@ENGINES
def test_tuning_starts_at_the_plain_average(engine):
    tuner = tuner_of("ampt", engine, perturbed=0)
    step = first_step(tuner)
    weights = tuner.classifier.routing_weights(step.images)
    assert torch.equal(weights, torch.full_like(weights, 1 / K))
    text = torch.nn.functional.normalize(text_features(reference_of(tuner)), dim=-1)
    features = image_features(reference_of(tuner), step.images)
    slow = [[scale_of(tuner.clip) * unit(f) @ unit(t) for t in text.mean(dim=0)] for f in features]
    wanted = torch.stack([torch.stack(row) for row in slow])
    assert relative(tuner.classifier(step.images), wanted) <= EXACT
    # prompts of one average get the same gradient through it: they must not start alike
    assert not torch.equal(tuner.prompts.tokens[0], tuner.prompts.tokens[1])


@ENGINES
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_routing_weights_are_the_routers(temperature, engine):
    tuner = tuner_of("ampt", engine, temperature=temperature)
    perturb(tuner.prompts.head.router, 0.3)
    step = first_step(tuner)
    weights = tuner.classifier.routing_weights(step.images)
    assert weights.shape == (3, K)
    assert (weights.sum(dim=1) - 1).abs().max() < 1e-12
    assert weights.min() > 0
    for i, one in enumerate(weights):
        assert all(relative(one, other) > 1e-3 for other in weights[:i])
    slow = torch.stack(slow_weights(tuner, image_features(reference_of(tuner), step.images)))
    assert relative(weights, slow.detach()) <= EXACT


def test_a_low_temperature_picks_a_prompt_and_a_high_one_none():
    cold, hot = (tuner_of("ampt", temperature=t) for t in (1e-4, 1e6))
    step = first_step(hot)
    for tuner in (cold, hot):
        perturb(tuner.prompts.head.router, 1.0)
    weights = cold.classifier.routing_weights(step.images)
    assert (weights.amax(dim=1) > 1 - 1e-6).all()
    even = hot.classifier.routing_weights(step.images)
    assert (even - 1 / K).abs().max() < 1e-4
    # a mixture of one prompt has that prompt's logits
    features = cold.model.image_features(step.images)
    text = cold.model.class_features()
    for b, k in enumerate(weights.argmax(dim=1).tolist()):
        row = [scale_of(cold.clip) * unit(features[b]) @ unit(t) for t in text[k]]
        assert relative(cold.classifier(step.images)[b], torch.stack(row)) < 1e-5


def test_a_classifier_keeps_its_router():
    tuner = tuner_of("ampt")
    images = first_step(tuner).images
    classifier = tuner.classifier
    before = classifier.routing_weights(images), classifier(images)
    perturb(tuner.prompts, 1.0)
    assert torch.equal(classifier.routing_weights(images), before[0])
    assert torch.equal(classifier(images), before[1])
    assert not torch.equal(tuner.classifier.routing_weights(images), before[0])


def test_other_methods_have_no_routing_weights():
    tuner = tuner_of("apt")
    with pytest.raises(ValueError, match=r"router.* mixture"):
        tuner.classifier.routing_weights(first_step(tuner).images)


def test_the_mixture_serves_other_classes():
    tuner = tuner_of("ampt")
    images = first_step(tuner).images
    other = tuner.classifier_for(["fish", "cat"])
    assert relative(other(images), tuner.classifier(images)[:, [3, 0]]) <= EXACT
    assert torch.equal(other.routing_weights(images), tuner.classifier.routing_weights(images))


# ---- bad input -------------------------------------------------------------------------------

REFUSED = {
    "n_prompts": ({"n_prompts": 0}, "^n_prompts .*1.* 0"),
    "temperature": ({"temperature": 0}, "^temperature .*0.* 0"),
    "clean_share": ({"clean_share": 2}, r"^clean_share .*0 .*1, .*2"),
    "clean_share_negative": ({"clean_share": -1}, "^clean_share .*0.* -1"),
    "load_balance": ({"load_balance": -1}, "^load_balance .*0.* -1"),
    "router_width": ({"router_width": 0}, "^router_width .*1.* 0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_out_of_range_are_refused(options, message, small_clip):
    with pytest.raises(ValueError, match=message):
        AMPTConfig(**options)
    with pytest.raises(ValueError, match=message):
        AMPTTuner(small_clip, NAMES, **options)


def test_an_unknown_mixing_is_refused(small_clip):
    with pytest.raises(ValueError, match=r"^mix .*'normalized'.*'raw'.*'mean'"):
        AMPTConfig(mix="mean")
    with pytest.raises(ValueError, match=r"config: .*mix.*mean"):
        AMPTTuner(small_clip, NAMES, mix="mean")
