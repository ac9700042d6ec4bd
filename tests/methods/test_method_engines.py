"""Every method on both engines, driven through its tuner; what its steps cost; its attack."""

import copy
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from helpers.method_checks import (
    BATCH,
    EXACT,
    NAMES,
    SINGLE,
    classes_out,
    clip_of,
    counted,
    data,
    first_step,
    gradients,
    images_in,
    order,
    perturb,
    relative,
    tokens_out,
    tuner_of,
)

from fastprompt import PGD
from fastprompt.attacks.result import untouched
from fastprompt.data.augment import RandomCrops
from fastprompt.methods import published
from fastprompt.methods.registry import TUNERS
from fastprompt.model.classifier import CLIPClassifier
from fastprompt.tuning import optimizers
from fastprompt.tuning.step import Step

ENGINES = ("fast", "reference")


# name: method, epoch, options
CASES = {
    "advpt": ("advpt", 0, {}),
    "advpt-words": ("advpt", 0, {"ctx_init": "a photo"}),
    "apt": ("apt", 1, {}),
    "apt-words": ("apt", 1, {"ctx_init": "a photo"}),
    "apt-fixed_words": ("apt", 1, {"template": "a [ctx] photo of {} on a table."}),
    "apt-class_specific": ("apt", 1, {"class_specific": True}),
    "apt-own_radii": ("apt", 1, {"eps_min": "1/255"}),
    "apt-not_augmented": ("apt", 1, {"augment": False}),
    "ampt": ("ampt", 1, {}),
    "ampt-raw": ("ampt", 1, {"mix": "raw"}),
    "ampt-clean_share": ("ampt", 1, {"clean_share": 0.3}),
    "ampt-load_balance": ("ampt", 1, {"load_balance": 0.5}),
    "ampt-all": (
        *("ampt", 1),
        {"mix": "raw", "clean_share": 0.3, "load_balance": 0.5, "temperature": 0.5},
    ),
    "capt-confidence": ("capt", 1, {}),
    "capt-image_to_text": ("capt", 1, {"coupling": "image-to-text", "template": "{} [ctx]."}),
    "capt-constant": ("capt", 1, {"balance": "constant", "balance_value": 0.3}),
    "capt-linear": ("capt", 1, {"balance": "linear"}),
    "capt-linear-first": ("capt", 0, {"balance": "linear"}),
    "capt-adv_ce": ("capt", 1, {"ce": "adv"}),
    "capt-learning_targets": ("capt", 1, {"detach_targets": False}),
    "capt-adv_ce-learning_targets": ("capt", 1, {"ce": "adv", "detach_targets": False}),
    "capt-targets_first": (
        *("capt", 1),
        {"train_kl": "target||adv", "frozen_kl": "target||adv", "lam": 2.0},
    ),
    "capt-not_augmented": ("capt", 1, {"augment": False}),
    "capt-depth_1": ("capt", 1, {"depth": 1}),
    "apt-clamped_inputs": ("apt", 1, {"clamp": "inputs"}),
    "advpt-clamped_in_steps": ("advpt", 0, {"clamp": "steps", "start": "one-sided"}),
    "nap-first": ("nap", 0, {}),
    "nap": ("nap", 1, {}),
    "nap-fixed": ("nap", 0, {"schedule": "fixed"}),
    "nap-fixed-later": ("nap", 1, {"schedule": "fixed"}),
    "nap-mse": ("nap", 1, {"consistency": "mse"}),
    "nap-no_consistency": ("nap", 1, {"consistency": "none"}),
    "nap-no_refiners": ("nap", 1, {"refiners": False}),
    "nap-text_refiners": ("nap", 1, {"text_refiners": True}),
    "nap-text_refiners-only": ("nap", 1, {"refiners": False, "text_refiners": True}),
    "nap-linear_start": ("nap", 1, {"refiner_start": "linear"}),
    "nap-depth_1": ("nap", 1, {"depth": 1}),
    "apt-margin": ("apt", 1, {"attack_loss": "margin"}),
    "apt-trades": ("apt", 1, {"objective": "trades"}),
    "ampt-targeted_dlr": ("ampt", 1, {"attack_loss": "targeted-dlr"}),
    "ampt-trades": ("ampt", 1, {"objective": "trades", "clean_share": 0.3, "load_balance": 0.5}),
    "capt-mixed": ("capt", 1, {"attack_loss": "mixed"}),
    "capt-trades": ("capt", 1, {"objective": "trades", "trades_beta": 2.0}),
    "nap-dlr": ("nap", 1, {"attack_loss": "dlr"}),
    "nap-trades-mixed": ("nap", 1, {"objective": "trades", "attack_loss": "mixed"}),
    "nap-published": (
        *("nap", 1),
        {k: v for k, v in published.NAP.items() if k not in ("batch", "precision")},
    ),
}


# ---- the engines agree -----------------------------------------------------------------------


def an_epoch(tuner, epoch: int) -> dict[str, torch.Tensor]:
    """Loss and gradients of each step of an epoch, its attack, and the prompts behind it."""
    out = {}
    optimizer = optimizers.make_optimizer(tuner.config, tuner.prompts.parameters())
    for i, (size, step) in enumerate(tuner.batches(order(), epoch)):
        assert size == BATCH
        loss = tuner.loss(step)
        out[f"loss {i}"] = loss.detach()
        grads = gradients(tuner.prompts, loss)
        out |= {f"gradient {i} of {name}": grad for name, grad in grads.items()}
        if isinstance(step, Step) and step.result is not None:
            out[f"images {i}"] = step.adv
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert i == 2
    return out | {name: p.detach() for name, p in tuner.prompts.named_parameters()}


@pytest.mark.parametrize(("method", "epoch", "options"), CASES.values(), ids=CASES)
def test_engines_agree_in_float64(method, epoch, options):
    """Loss, gradients, attack and prompts, over three optimizer steps."""
    tuners = [tuner_of(method, engine, **options) for engine in ENGINES]
    assert type(tuners[0].model.text) is not type(tuners[1].model.text)
    start = {name: p.detach().clone() for name, p in tuners[0].prompts.named_parameters()}
    ours, wanted = (an_epoch(tuner, epoch) for tuner in tuners)
    errors = {name: relative(ours[name], wanted[name]) for name in ours}
    assert max(errors.values()) <= EXACT, errors
    assert all(relative(ours[name], start[name]) > 1e-6 for name in start)
    # the fast engine leaves out an attack that nothing reads, and no other
    attacked = {name for name in wanted if name.startswith("images")}
    assert len(attacked) == (0 if method == "advpt" else 3)
    assert attacked & ours.keys() == (set() if (method, epoch, options) == NO_ATTACK else attacked)


NO_ATTACK = CASES["nap-first"]


def off_the_kink(tuner) -> None:
    """Refiners whose ReLUs are far from 0, where rounding alone turns a unit on."""
    lists = tuner.model.refiners, tuner.model.text_refiners
    with torch.no_grad():
        for refiner in (r for refiners in lists for r in refiners or ()):
            bias = refiner.first.bias
            on = torch.arange(len(bias)) % 2 == 0
            bias += torch.where(on, 80.0, -80.0)
            refiner.second.weight *= 0.03  # the units that are on are large now


@pytest.mark.parametrize(("method", "epoch", "options"), CASES.values(), ids=CASES)
def test_engines_agree_in_float32(method, epoch, options):
    """A step on 16 images, with the same adversarial ones: rounding turns signs in an attack."""
    clip, found, images = clip_of(torch.float32), [], None
    for engine in ENGINES:
        tuner = tuner_of(method, engine, clip=clip, n=16, batch=16, **options)
        off_the_kink(tuner)
        if method == "advpt":
            images = tuner._banks["train"] if images is None else images
            tuner._banks["train"], step = images, torch.arange(16)
        else:
            _, step = next(iter(tuner.batches(torch.arange(16), epoch)))
            images = step.adv if images is None else images
            step.result = untouched(images)
        loss = tuner.loss(step)
        assert loss.dtype == torch.float32
        found.append({"loss": loss.detach(), **gradients(tuner.prompts, loss)})
    errors = {name: relative(found[0][name], found[1][name]) for name in found[0]}
    assert max(errors.values()) <= SINGLE, errors


# ---- what a step costs -----------------------------------------------------------------------


class Cost:
    """Calls of the towers in one step, backward pass included."""

    def __init__(self, tuner, epoch: int = 1) -> None:
        step = first_step(tuner, epoch)
        with ExitStack() as stack:
            self.text = stack.enter_context(counted(tuner.model.text, classes_out))
            self.image = stack.enter_context(counted(tuner.model.image, images_in))
            block = tuner.clip.model.transformer.resblocks[0]
            self.full = stack.enter_context(counted(block, tokens_out))
            tuner.loss(step).backward()
        self.attacked = step.result is not None


C, B, K = len(NAMES), BATCH, 3
# classes in the text pass; images in the passes of attack and loss; how many of them go back: the
# loss's does only where something learns in the image tower
FAST = {
    "apt": (C, [B, B, B], 2),
    "ampt": (K * C, [B, B, B], 2),
    "ampt-clean_share": (K * C, [B, B, 2 * B], 2),
    "ampt-load_balance": (K * C, [B, B, B], 2),
    "capt-confidence": (C, [B, B, 2 * B], 3),
    "capt-targets_first": (C, [B, B, 2 * B], 3),
    "capt-adv_ce": (C, [B, B, B, B], 3),  # the clean target has no graph
    "capt-adv_ce-learning_targets": (C, [B, B, 2 * B], 3),
    "nap": (C, [B, B, 2 * B], 3),
    "nap-text_refiners": (C, [B, B, 2 * B], 3),
    "nap-fixed": (C, [B, B, 2 * B], 3),
    "nap-first": (C, [B], 1),
    # the clean logits of the attack's loss
    "apt-margin": (C, [B, B, B], 2),
    "apt-trades": (C, [B, B, B, 2 * B], 2),
    "capt-mixed": (C, [B, B, B, 2 * B], 3),
    "nap-trades-mixed": (C, [B, B, B, 2 * B], 3),
}


@pytest.mark.parametrize("case", FAST)
def test_the_fast_step_runs_the_text_encoder_once(case):
    method, epoch, options = CASES[case]
    classes, passes, backward = FAST[case]
    cost = Cost(tuner_of(method, **options), epoch)
    assert cost.text.forward == [classes]
    assert cost.text.backward == 1
    assert cost.image.forward == passes
    assert cost.image.backward == backward
    assert cost.full.forward == []  # and never open_clip's own blocks at full length
    assert cost.attacked == (case != "nap-first")


def test_advpt_encodes_no_image_in_its_steps():
    tuner = tuner_of("advpt")
    with counted(tuner.model.text, classes_out) as text, counted(tuner.model.image, images_in) as i:
        tuner.loss(torch.arange(BATCH)).backward()
    assert (text.forward, text.backward) == ([C], 1)
    assert i.forward == []


# steps of the attack, passes of the loss, prompts encoded one by one
REFERENCE = {
    "apt": (3, 1, 1),
    "ampt": (3, 1, K),
    "ampt-clean_share": (3, 2, K),
    "capt-confidence": (2, 2, 1),
    "nap": (5, 2, 1),
    "nap-first": (5, 2, 1),
    "apt-trades": (3, 3, 1),  # one of them for the clean logits of the attack's loss
}


@pytest.mark.parametrize("case", REFERENCE)
def test_the_reference_step_runs_the_text_encoder_in_every_pass(case):
    """NAP's with PGD-5, then clean and adversarial: seven times, as published code does."""
    method, epoch, options = CASES[case]
    steps, passes, prompts = REFERENCE[case]
    cost = Cost(tuner_of(method, "reference", steps=steps, **options), epoch)
    assert cost.full.forward == [77 * C] * ((steps + passes) * prompts)
    assert cost.text.forward == [prompts * C] * (steps + passes)
    assert cost.image.forward == [B] * (steps + passes)
    assert cost.attacked


@pytest.mark.parametrize("augment", [True, False])
def test_capt_asks_the_frozen_model_no_more_than_it_must(augment, monkeypatch):
    """Once a run of images that stay as they are, once a step of crops."""
    seen, plain = [], CLIPClassifier.encode_image

    def encode_image(self, images):
        seen.append(len(images))
        out = plain(self, images)
        assert not out.requires_grad
        return out

    monkeypatch.setattr(CLIPClassifier, "encode_image", encode_image)
    tuner = tuner_of("capt", augment=augment, epochs=3)
    seen.clear()
    tuner.fit(data(), progress=False)
    assert seen == [BATCH] * (9 if augment else 3)
    seen.clear()
    reference = tuner_of("capt", "reference", augment=augment, epochs=3)
    assert seen == []
    reference.fit(data(), progress=False)
    assert seen == [BATCH] * 9


def test_capts_clean_target_carries_no_graph():
    tuner = tuner_of("capt", ce="adv")
    seen, see = [], tuner.model.see

    def spy(images, *args, **options):
        out = see(images, *args, **options)
        seen.append((images, out.logits.requires_grad))
        return out

    tuner.model.see = spy
    step = first_step(tuner)
    tuner.loss(step)
    assert [graph for _, graph in seen] == [False, True]
    assert seen[0][0] is step.images
    assert seen[1][0] is step.adv


# ---- the attack ------------------------------------------------------------------------------

METHODS = ("apt", "ampt", "capt", "nap")
LEARNS = {
    "apt-context": ("apt", "tokens", {}),
    "apt-own_contexts": ("apt", "tokens", {"class_specific": True}),
    "ampt-contexts": ("ampt", "tokens", {}),
    "ampt-router": ("ampt", "head.router", {}),
    "ampt-router-raw": ("ampt", "head.router", {"mix": "raw"}),
    "capt-text": ("capt", "tokens", {}),
    "capt-visual": ("capt", "map_weight", {}),
    "nap-text": ("nap", "tokens", {}),
    "nap-visual": ("nap", "map_weight", {}),
    "nap-refiners": ("nap", "refiners", {}),
    "nap-text_refiners": ("nap", "text_refiners", {"text_refiners": True}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("method", "part", "options"), LEARNS.values(), ids=LEARNS)
def test_the_attack_goes_through_all_that_learns(method, part, options, engine):
    tuner = tuner_of(method, engine, **options)
    before, again = first_step(tuner).adv, first_step(tuner).adv
    assert torch.equal(before, again)
    found = [p for name, p in tuner.prompts.named_parameters() if name.startswith(part)]
    assert found
    perturb(torch.nn.ParameterList(found), 0.5, seed=9)
    assert (first_step(tuner).adv != before).double().mean() > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_the_attack_is_pgd_on_the_classifier_of_this_very_step(method, engine):
    """Not of the start values, not of the step before."""
    tuner = tuner_of(method, engine, lr=0.05)
    config = tuner.config
    optimizer = optimizers.make_optimizer(config, tuner.prompts.parameters())
    earlier = []
    for _, step in tuner.batches(order(), 0):
        images = []
        for classifier in (*earlier, copy.deepcopy(tuner.classifier)):
            attack = PGD(classifier, config.eps, config.step_size, config.steps, seed=config.seed)
            images.append(attack.run(step.images, step.labels, indices=step.rows).images)
        assert torch.equal(step.adv, images.pop())
        assert not any(torch.equal(step.adv, other) for other in images)
        earlier.append(tuner.classifier)
        optimizer.zero_grad()
        tuner.loss(step).backward()
        optimizer.step()
    assert len(earlier) == 3


@pytest.mark.parametrize("method", METHODS)
def test_the_default_attack_is_the_published_one(method):
    """NAP takes five steps of 0.3 eps, APT three of 2/3 eps; CAPT's and AMPT's are open."""
    steps, share = {"nap": (5, 0.3), "capt": (2, 1.0)}.get(method, (3, 2 / 3))
    config = TUNERS[method].Config()
    assert config.steps == steps
    assert config.eps == 4 / 255
    assert config.step_size == pytest.approx(share * 4 / 255, rel=1e-12)
    one = TUNERS[method].Config(steps=1)
    assert one.step_size == pytest.approx(one.radius, rel=1e-12)  # and no step leaves the ball


@pytest.mark.parametrize("method", METHODS)
def test_own_radii_bound_each_image(method):
    tuner = tuner_of(method, eps_min="1/255")
    step = first_step(tuner)
    moved = (step.adv - step.images).abs().amax(dim=(1, 2, 3))
    assert (moved <= step.radius + 1e-7).all()
    assert (moved > 0.9 * step.radius).all()
    assert len(step.radius.unique()) == BATCH
    assert step.radius.min() >= 1 / 255 - 1e-9
    assert step.radius.max() <= 8 / 255 + 1e-9
    assert not torch.equal(first_step(tuner, 2).radius, step.radius)


# ---- what all methods share ------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_the_classifier_gives_the_logits_of_the_step(method, engine):
    tuner = tuner_of(method, engine)
    step = first_step(tuner)
    seen = step.attacked().logits
    assert relative(tuner.classifier(step.adv), seen) <= EXACT
    assert F.cross_entropy(seen, step.labels) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_images_are_cropped_anew_in_each_epoch(method):
    """An image's crop belongs to the image, wherever it stands in the order."""
    tuner, whole = tuner_of(method), data()
    crops = RandomCrops((0.08, 1), seed=tuner.config.seed)
    seen = []
    for epoch in (0, 1):
        boxes = crops.draw(len(whole), epoch)
        for _, step in tuner.batches(order(), epoch):
            wanted = crops(whole.images[step.rows].float() / 255, boxes[step.rows])
            assert torch.equal(step.images, wanted)
            assert torch.equal(step.labels, whole.labels[step.rows])
            assert step.progress == epoch / 4
            seen.append(step)
    assert torch.equal(torch.cat([step.rows for step in seen[:3]]), order())
    assert torch.equal(seen[0].rows, seen[3].rows)
    assert not torch.equal(seen[0].images, seen[3].images)


@pytest.mark.parametrize("method", METHODS)
def test_random_starts_are_drawn_anew_in_each_epoch(method):
    """Also of images that are not augmented."""
    tuner, whole = tuner_of(method, augment=False, alpha="0.2/255"), data().images.float() / 255
    steps = [first_step(tuner, epoch) for epoch in (0, 1)]
    assert all(torch.equal(step.images, whole[step.rows]) for step in steps)
    assert (steps[0].adv != steps[1].adv).double().mean() > 0.5
    still = tuner_of(method, augment=False, alpha="0.2/255", random_start=False)
    steps = [first_step(still, epoch) for epoch in (0, 1)]
    assert torch.equal(steps[0].adv, steps[1].adv)
