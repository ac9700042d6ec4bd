"""Steps of tuning and of attacks on fake GPU tensors: the host neither waits nor copies."""

from typing import get_args

import pytest
import torch
from helpers.fake_cuda import fake_cuda, no_waits, on_fake_cuda, put_attack
from helpers.method_checks import NAMES, SETTINGS, order, tuner_of
from torch.utils._pytree import tree_map

from fastprompt.attacks import APGD, PGD
from fastprompt.attacks.base import Batch, wrong_classes
from fastprompt.attacks.climb import Climb
from fastprompt.towers import ImageTower
from fastprompt.towers.image_prompts import ImagePrompts
from fastprompt.tuning import optimizers
from fastprompt.tuning.attack_loss import AttackLoss

# one step of the attack repeats the other
ONE = {"eps_min": "1/255", "steps": 1, "precision": "bf16"}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """The tuners are made on the CPU, which computes few short prompts whole."""
    monkeypatch.setattr("fastprompt.towers.text.few_whole", lambda *sizes: False)


def step(tuner, optimizer, batches, first) -> None:
    """All of a tuning step but the copy of the order, with which an epoch begins."""
    optimizer.zero_grad(set_to_none=True)
    tuner.loss(first).backward()
    optimizer.step()
    next(batches)


LOSSES: dict[str, tuple[str, dict]] = {
    **{method: (method, {}) for method in sorted(SETTINGS)},
    **{f"apt-{name}": ("apt", {"attack_loss": name}) for name in get_args(AttackLoss)},
    "ampt-trades": ("ampt", {"objective": "trades", "clean_share": 0.5}),
    "capt-trades": ("capt", {"objective": "trades", "attack_loss": "mixed"}),
    "nap-trades": ("nap", {"objective": "trades"}),
}


@pytest.mark.parametrize(("method", "given"), LOSSES.values(), ids=LOSSES)
def test_a_tuning_step_never_waits_for_the_device(method, given, small_clip):
    options = {"precision": "bf16"} if method == "advpt" else {**ONE, **given}
    tuner = tuner_of(method, clip=small_clip, **options)
    with fake_cuda() as put:
        on_fake_cuda(tuner, put)
        optimizer = optimizers.make_optimizer(tuner.config, tuner.prompts.parameters())
        batches = tuner.batches(order(), 1)
        _, first = next(batches)
        with no_waits() as seen:
            step(tuner, optimizer, batches, first)
    assert seen.launches


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_casts_each_refiner_once_and_its_gradient_once(steps, small_clip):
    tuner = tuner_of("nap", clip=small_clip, **{**ONE, "steps": steps})
    (refiner,) = tuner.prompts.refiners
    with fake_cuda() as put:
        on_fake_cuda(tuner, put)
        _, first = next(tuner.batches(order(), 1))
        with no_waits() as seen:
            tuner.loss(first).backward()
    for weight in (refiner.first.weight, refiner.second.weight):
        assert seen.casts[tuple(weight.shape)] == 2


def test_visual_prompts_take_two_copies_a_layer_in_the_attack(small_clip):
    visual = small_clip.model.visual
    depth, width = len(visual.transformer.resblocks), visual.class_embedding.shape[-1]
    launched = []
    for layers in (range(depth), ()):
        tower = ImageTower(small_clip, layers, dtype=torch.bfloat16)
        prompts = tower.share(torch.ones(depth, 2, width) if layers else None).detached()
        with fake_cuda() as put:
            put(tower), put(tower.visual)
            tokens, keys, refiners = prompts
            moved = ImagePrompts(tree_map(put, tokens), tree_map(put, keys), refiners)
            x = put(torch.rand(2, 3, 48, 48)).requires_grad_()
            with no_waits() as forward:
                out = tower(x, moved)
            given = torch.ones_like(out)
            with no_waits() as backward:
                torch.autograd.grad(out, x, given)
        launched.append((forward.launches, backward.launches))
    (forward, backward), (plain, plain_backward) = launched
    assert forward - plain == {"cat": 2 * depth}  # keys and values
    assert backward == plain_backward


ATTACKS = {
    "pgd": lambda model: PGD(model, steps=2),
    "apgd": lambda model: APGD(model, steps=2, loss="dlr", stop=False),
    "apgd-targeted": lambda model: APGD(model, steps=2, loss="targeted-dlr", stop=False),
}


@pytest.mark.parametrize(
    ("name", "judged"), [("pgd", True), ("apgd", False), ("apgd-targeted", True)]
)
def test_an_attack_on_the_zero_shot_model_never_waits(name, judged, small_clip, images):
    model, labels = small_clip.zero_shot(NAMES), torch.arange(len(images))
    attack = ATTACKS[name](model)
    ascent = attack.ascent(Batch(images, labels, labels))
    run = Climb(model, ascent, images, labels, 4, attack.judge if judged else None)
    with fake_cuda() as put:
        put(model), put_attack(run, put)
        run.refill()  # copies the slots' indices
        with no_waits() as seen:
            wrong_classes(model, run.images, run.labels)
            for last in (False, True):
                run.step()
                if not (last or judged):
                    run.harvest()  # finds no slot to free
    assert seen.launches


def test_adamw_updates_all_prompts_in_one_kernel(small_clip):
    tuner = tuner_of("nap", clip=small_clip, **ONE)
    with fake_cuda() as put:
        on_fake_cuda(tuner, put)
        learning = list(tuner.prompts.parameters())
        optimizer = optimizers.make_optimizer(tuner.config, learning)
        for parameter in learning:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()  # makes the moments
        with no_waits() as seen:
            optimizer.step()
    assert dict(seen.launches) == {"_foreach_add_": 1, "_fused_adamw_": 1}


PLANTED = {
    "item": lambda t, _: t.sum().item(),
    "branch": lambda t, _: 1 if (t > 0).any() else 0,
    "float": lambda t, _: float(t[0]),
    "nonzero": lambda t, _: t.nonzero(),
    "mask": lambda t, _: t[t > 0],
    "masked write": lambda t, _: t.index_put_((t > 0,), t.new_ones(())),
    "where": lambda t, _: torch.where(t > 0),
    "to the host": lambda t, _: t.cpu(),
    "from the host": lambda t, host: host.to(t.device),
    "a new tensor": lambda t, _: torch.tensor([0, 1], device=t.device),
    "write a number": lambda t, _: t.__setitem__(0, 1),
    "copy": lambda t, host: t.copy_(host),
    "index by a list": lambda t, _: t[[0, 1]],
    "index by a host tensor": lambda t, host: t[host.long()],
    "host scalar": lambda t, host: t[0].copy_(host[0]),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_wait_is_found(planted):
    t, host = torch.ones(3), torch.zeros(3)
    with fake_cuda() as put:
        moved = put(t)
        with pytest.raises(AssertionError, match="waits for the device"), no_waits():
            PLANTED[planted](moved * 2, host)


def test_what_does_not_wait_is_not_reported():
    with fake_cuda() as put:
        t = put(torch.ones(3))
        with no_waits() as seen:
            t[:1].fill_(2)
            (t * 2.0 + t[0]).to(torch.bfloat16).float()
            torch.where(t > 0, t, 0.0), torch.zeros(2, device=t.device), t.new_full((), 1.5)
            t.index_select(0, torch.arange(2, device=t.device))
    assert seen.casts.total() == 2


def test_a_planted_wait_in_a_loss_is_found(small_clip, monkeypatch):
    tuner = tuner_of("apt", clip=small_clip, **ONE)
    loss = type(tuner).loss
    monkeypatch.setattr(type(tuner), "loss", lambda self, b: loss(self, b) * b.labels.max().item())
    with fake_cuda() as put:
        on_fake_cuda(tuner, put)
        _, first = next(tuner.batches(order(), 1))
        with pytest.raises(AssertionError, match=r"_local_scalar_dense"), no_waits():
            tuner.loss(first)
