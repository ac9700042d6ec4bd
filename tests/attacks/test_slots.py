"""Stopping at images that are fooled, and giving their slots to others."""

import pytest
import torch
from helpers.attack_toys import Linear, batch, close_calls, fooled
from torch import nn

from fastprompt import PGD
from fastprompt.attacks import APGD
from fastprompt.attacks.climb import climb
from fastprompt.attacks.losses import margin

# of these images some fall in every step, and some never do
SLOW = {"eps": 0.03, "alpha": 0.004, "steps": 6}
STARTS = pytest.mark.parametrize("start", [True, False], ids=["random_start", "no_start"])
SLOTS = pytest.mark.parametrize("slots", [None, 1, 7, 40, 99])


def iterates(model, x, y, **options):
    """The plain attack's start and what it has after 1, 2, ... steps."""
    plain = PGD(model, **options)
    start = plain.start(x, torch.arange(len(x)), 0)
    later = [PGD(model, **options | {"steps": k + 1}).run(x, y).images for k in range(6)]
    return [start, *later]


@STARTS
@SLOTS
def test_an_image_keeps_what_felled_it_first_and_the_others_go_on(start, slots):
    model, x, y = close_calls()
    options = SLOW | {"random_start": start}
    steps = iterates(model, x, y, **options)
    result = PGD(model, **options, stop=True, batch=slots).run(x, y)
    wanted, fell_at = steps[-1].clone(), torch.full((len(x),), -1)
    for step, images in enumerate(steps):
        down = (fell_at < 0) & fooled(model, images, y)
        wanted[down], fell_at[down] = images[down], step
    assert len(fell_at.unique()) >= 5  # and some stand
    assert -1 in fell_at
    assert torch.equal(result.images, wanted)
    assert torch.equal(result.fell_at, fell_at)
    assert torch.equal(result.success, fell_at >= 0)


@STARTS
def test_with_nobody_fooled_it_is_the_plain_attack(start):
    def model(x):  # its second class stays behind by as much, wherever the image goes
        first = Linear(dtype=torch.float64)(x)[:, :1]
        return torch.cat([first, first.detach() - 8], dim=1)

    x, _ = batch(5, dtype=torch.float64)
    y = torch.zeros(5, dtype=torch.int64)
    plain, ours = (
        PGD(model, **SLOW, random_start=start, stop=stop, batch=3).run(x, y)
        for stop in (False, True)
    )
    assert not ours.success.any()
    assert not torch.equal(plain.images, x)
    assert torch.equal(ours.images, plain.images)
    assert torch.equal(ours.health.zero, plain.health.zero)
    assert ours.health.total == plain.health.total


class Sine(nn.Module):
    """An image that is fooled may be right again a step later."""

    def forward(self, x):
        s = (40 * x.flatten(1)[:, :40]).sin().sum(1)
        return torch.stack([-s + 24, s], 1)


@STARTS
def test_it_finds_what_the_last_iterate_hides(start):
    x, _ = batch(64, dtype=torch.float64)
    y = torch.zeros(64, dtype=torch.int64)
    options = {"eps": 0.2, "alpha": 0.05, "steps": 8, "random_start": start}
    plain, ours = (PGD(Sine(), **options, stop=stop).run(x, y) for stop in (False, True))
    assert (ours.success | ~plain.success).all()
    assert ours.success.sum() > plain.success.sum()
    assert torch.equal(fooled(Sine(), ours.images, y), ours.success)


@pytest.mark.parametrize("restarts", [1, 3])
def test_splits_orders_and_slots_change_nothing(restarts):
    model, x, y = close_calls()
    options = {**SLOW, "stop": True, "restarts": restarts, "seed": 5}
    indices = torch.arange(40) + 7
    whole = PGD(model, **options).run(x, y, indices=indices)
    for rows in (slice(0, 11), slice(11, 40), [39, 3, 20]):
        part = PGD(model, **options, batch=4).run(x[rows], y[rows], indices=indices[rows])
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.success, whole.success[rows])


def test_free_slots_are_filled_at_once_and_no_pass_is_wasted():
    model, x, y = close_calls()
    sizes = []

    def counted(images):
        if images.requires_grad:
            sizes.append(len(images))
        return model(images)

    result = PGD(counted, **SLOW, stop=True, batch=8).run(x, y)
    # an image that falls at iterate k took k + 1 gradients, one that stands all 6
    needed = torch.where(result.success, (result.fell_at + 1).clamp(max=6), 6)
    assert sum(sizes) == int(needed.sum())
    tail = next(i for i, size in enumerate(sizes) if size < 8)
    assert set(sizes[:tail]) == {8}
    assert len(sizes) - tail <= 6  # then nobody is waiting any more
    assert tail > 10


def test_with_few_images_several_attempts_share_a_batch():
    model, x, y = close_calls(3)
    sizes = []

    def counted(images):
        if images.requires_grad:
            sizes.append(len(images))
        return model(images)

    options = {"eps": 0.01, "steps": 6, "loss": "targeted-margin", "targets": 4}
    found = [APGD(counted, **options, batch=size).run(x, y) for size in (1, 8, 100)]
    assert {1, 8, 12} <= set(sizes)
    assert all(torch.equal(result.success, found[0].success) for result in found)
    assert not found[0].success.all()


def test_the_host_may_look_seldom():
    model, x, y = close_calls()
    attack = PGD(model, **SLOW, stop=True)

    def climbed(look):
        from fastprompt.attacks.base import Batch
        from fastprompt.attacks.pgd import _PGDAscent

        ascent = _PGDAscent(attack, Batch(x, y, torch.arange(40)))
        return climb(model, ascent, x, y, slots=9, look=look, judge=attack.judge)

    often = climbed(1)
    for look in (2, 3, 100):
        seldom = climbed(look)
        assert torch.equal(often.images, seldom.images)
        assert torch.equal(often.fell_at, seldom.fell_at)


def test_targets_and_restarts():
    model, x, y = close_calls()
    target = (y + 1) % 5
    options = SLOW | {"eps": 0.06}
    plain, ours = (
        PGD(model, **options, targeted=True, stop=stop).run(x, target) for stop in (False, True)
    )
    assert (ours.success | ~plain.success).all()
    assert torch.equal(model(ours.images).argmax(1) == target, ours.success)
    assert ours.success.any()
    assert not ours.success.all()
    once, thrice = (PGD(model, **SLOW, restarts=r, stop=True).run(x, y) for r in (1, 3))
    assert (thrice.success | ~once.success).all()
    assert torch.equal(thrice.images[once.success], once.images[once.success])
    assert thrice.fell_at.max() <= 3 * 7


def test_an_image_without_a_gradient_is_told_of():
    def detached(x):
        return Linear()(x).detach()

    x, y = batch()
    y = detached(x).argmax(1)
    result = PGD(detached, eps=1e-3, alpha=1e-3, steps=4, stop=True).run(x, y)
    assert result.health.stalled.all()
    assert not result.trusted


def test_a_fall_that_only_the_gradient_pass_sees_does_not_count():
    """Kernels with and without gradients round differently: the judge has the last word."""

    class TwoFaced(nn.Module):
        def forward(self, x):
            logits = Linear(dtype=torch.float64)(x)
            return logits.flip(1) if x.requires_grad else logits

    x, _ = batch(6, dtype=torch.float64)
    y = Linear(dtype=torch.float64)(x).argmax(1)
    result = PGD(TwoFaced(), eps=1e-9, alpha=1e-9, steps=3, stop=True).run(x, y)
    assert not result.success.any()


def test_no_images():
    x, y = batch(0)
    result = PGD(Linear(), **SLOW, stop=True).run(x, y)
    assert result.images.shape == x.shape
    assert result.success.shape == (0,)


def test_gradients_are_means_over_the_samples():
    model, x, y = close_calls(6)
    calls = []

    def random(images):
        calls.append(len(images))
        return model(images) * (1 + 0.5 * (len(calls) % 2))  # 1.5 and 1 by turns

    # the margin's direction is the same at any scale: cross-entropy's is not
    options = {**SLOW, "random_start": False, "loss": margin}
    once = PGD(model, **options).run(x, y)
    for stop in (False, True):
        calls.clear()
        result = PGD(random, **options, samples=2, stop=stop).run(x, y)
        if not stop:
            assert result.health.total == 2 * once.health.total
        assert len(calls) >= 12
        stands = ~(result.success | once.success)
        assert torch.allclose(result.images[stands], once.images[stands])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"batch": 0}, ValueError, "^batch .*1.*0"),
        ({"batch": 1.5}, TypeError, "^batch .*1.5"),
        ({"samples": 0}, ValueError, "^samples .*1.*0"),
    ],
)
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        PGD(Linear(), **options)
