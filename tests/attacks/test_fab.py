"""FAB: a slow spelling of the paper's algorithm, projection, slots, gradients, torchattacks."""

import itertools

import pytest
import torch
from helpers.attack_toys import Curved, Linear, batch, close_calls, fooled

from fastprompt.attacks import FAB
from fastprompt.attacks.fab import project
from fastprompt.evaluation.scoring import Counted

# ---- the algorithm --------------------------------------------------------------------------


def slow_project(x, value, grad):
    """The smallest L-inf step to the hyperplane, one pixel after the other reaching its bound."""
    pixels = []
    for at, w in zip(x, grad, strict=True):
        side = (-1 if value >= 0 else 1) * ((w > 0) - (w < 0))
        pixels.append((1 - at if side > 0 else at, abs(w), side))
    reached, slope, radius = 0.0, sum(w for _, w, _ in pixels), 0.0
    for room, w, _ in sorted(pixels):
        radius = (abs(value) - reached) / slope if slope > 1e-300 else room
        if radius <= room:
            break
        reached, slope, radius = reached + w * room, slope - w, room
    return [side * min(room, radius) for room, _, side in pixels]


def slow_fab(model, x, y, target, steps):
    """Algorithm 1 of the paper, targeted, for one image: points of gradients, and new iterates."""
    adv, points, iterates = x, [], []
    for _ in range(steps):
        points.append(adv)
        point = adv[None].requires_grad_()
        logits = model(point)[0]
        difference = logits[target] - logits[y]
        (grad,) = torch.autograd.grad(difference, point)
        w, f = grad.flatten().tolist(), float(difference.detach())
        flat, clean = adv.flatten().tolist(), x.flatten().tolist()
        f_clean = f + sum(a * (b - c) for a, b, c in zip(w, clean, flat, strict=True))
        d, d_clean = slow_project(flat, f, w), slow_project(clean, f_clean, w)
        n, n_clean = (max(1e-8, max(map(abs, each))) for each in (d, d_clean))
        alpha = min(n / (n + n_clean), 0.1)
        new = [
            (1 - alpha) * (a + 1.05 * da) + alpha * (c + 1.05 * dc)
            for a, da, c, dc in zip(flat, d, clean, d_clean, strict=True)
        ]
        adv = torch.tensor(new, dtype=x.dtype).clamp(0, 1).view_as(x)
        iterates.append(adv)
        if int(model(adv[None]).argmax()) != y:
            adv = x + 0.9 * (adv - x)
    return points, iterates


class Bent(Linear):
    """Away from the middle the first class gains: steps fall short of its boundary."""

    def forward(self, x):
        first = 2 * (x - 0.5).square().flatten(1).sum(1, keepdim=True)
        return torch.cat([first, super().forward(x - 0.5)], dim=1)


@pytest.mark.parametrize("kind", [Linear, Bent])
def test_every_iterate_is_the_papers(kind):
    model, x, y = close_calls(3, kind=kind)
    x = x.clone()
    x[0, 0], x[1, 1] = 0, 1  # pixels at the ends of the box
    y = model(x).argmax(1)
    gradients, checks = [], []

    def watched(images):
        (gradients if images.requires_grad else checks).append(images.detach().clone())
        return model(images)

    steps, targets = 8, 2
    result = FAB(watched, 0, steps, targets=targets, batch=6).run(x, y)
    assert not result.success.any()
    assert torch.equal(result.images, x)
    order = model(x).argsort(dim=1, descending=True)
    found = 0
    for slot, (attempt, i) in enumerate(itertools.product(range(targets), range(3))):
        points, iterates = slow_fab(model, x[i], y[i], order[i, attempt + 1], steps)
        for step in range(steps):
            torch.testing.assert_close(gradients[step][slot], points[step], rtol=0, atol=1e-10)
            # the first pass without gradients finds the targets
            torch.testing.assert_close(checks[step + 1][slot], iterates[step], rtol=0, atol=1e-10)
        found += sum(bool(fooled(model, it[None], y[i])) for it in iterates)
    some = found < steps * targets * 3 if kind is Bent else found == steps * targets * 3
    assert found > 0
    assert some  # with curvature some iterates retreat and some do not


@pytest.mark.parametrize("scale", [0.01, 0.5, 20.0])
def test_the_projection_is_the_sorted_one(scale):
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(12, 40, generator=gen, dtype=torch.float64).mul(1.6).sub(0.3).clamp(0, 1)
    grad = torch.randn(12, 40, generator=gen, dtype=torch.float64)
    grad[:, ::5] = 0
    grad[0], grad[1] = 0, grad[1].abs()
    value = scale * torch.randn(12, generator=gen, dtype=torch.float64)
    value[2] = 0
    step = project(x, value, grad)
    rows = zip(x.tolist(), value.tolist(), grad.tolist(), strict=True)
    slow = [slow_project(*row) for row in rows]
    torch.testing.assert_close(step, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-10)
    assert ((x + step >= -1e-15) & (x + step <= 1 + 1e-15)).all()
    missed = (value + (grad * step).sum(1)).abs()
    assert (missed[1:] < 1e-10).all() if scale < 0.1 else missed.max() > 1e-3 or scale < 10


def test_in_float32_too():
    gen = torch.Generator().manual_seed(1)
    x, grad = torch.rand(6, 3000, generator=gen), torch.randn(6, 3000, generator=gen)
    value = 30 * torch.randn(6, generator=gen)
    fine = project(x.double(), value.double(), grad.double())
    torch.testing.assert_close(project(x, value, grad).double(), fine, rtol=1e-4, atol=1e-6)


# ---- the slots ------------------------------------------------------------------------------


def test_an_image_leaves_with_all_its_targets():
    model, x, y = close_calls(12)
    counted = Counted(model).eval()
    steps, targets = 10, 4
    result = FAB(counted, 0.015, steps, targets=targets, batch=8).run(x, y)
    assert 3 < result.success.sum() < 12
    assert torch.equal(result.success, fooled(model, result.images, y))
    assert torch.equal(result.images[~result.success], x[~result.success])
    # the iterate of index k is evaluated in step k, or as the point of the gradient of step k + 1
    at = result.fell_at % (steps + 1)
    least = torch.where(result.success, at, steps).sum() * targets
    assert least <= counted.gradients <= least + targets * result.success.sum()
    confirmed = int(result.success.sum())
    assert counted.forwards == 2 * counted.gradients + len(x) + confirmed
    assert result.health.total == counted.gradients * x[0].numel()


def test_splits_and_batches_change_nothing():
    model, x, y = close_calls(12, kind=Curved)
    indices = torch.arange(12) + 3
    whole = FAB(model, 0.006, 12, targets=3).run(x, y, indices=indices)
    assert 0 < whole.success.sum() < 12
    for rows, size in ((slice(0, 12), 1), (slice(2, 9), 5), ([11, 4], None)):
        part = FAB(model, 0.006, 12, targets=3, batch=size)
        found = part.run(x[rows], y[rows], indices=indices[rows])
        torch.testing.assert_close(found.images, whole.images[rows], rtol=0, atol=1e-12)
        assert torch.equal(found.fell_at, whole.fell_at[rows])
    again = FAB(model, 0.006, 12, targets=3).run(x, y, indices=indices)
    assert torch.equal(again.images, whole.images)


# ---- gradients that are of no use -----------------------------------------------------------


def test_useless_gradients_are_reported():
    model = Linear()
    x, _ = batch()
    y = model(x).argmax(1)

    class Infinite(Linear):
        def forward(self, x):
            logits = super().forward(x)
            return logits + (0 * x.flatten(1)[:, :1]).sqrt()  # its gradient is NaN

    for useless, share in ((lambda x: model(x).detach(), (1, 0)), (Infinite(), (0, 1 / 192))):
        result = FAB(useless, 0.001, 3, targets=2).run(x, y)
        assert not result.trusted
        assert result.health.stalled.all()
        found = result.health.zero_share, result.health.nonfinite_share
        assert found == pytest.approx(share, abs=1e-6)
        assert result.images.isfinite().all()


# ---- beside torchattacks --------------------------------------------------------------------


@pytest.mark.peers
def test_it_fools_the_images_that_torchattacks_fools(torchattacks):
    for kind, eps in ((Linear, 0.015), (Curved, 0.005)):
        model, x, y = close_calls(12, kind=kind)
        model, x = model.float(), x.float()
        y = model(x).argmax(1)
        theirs = torchattacks.FAB(
            model, norm="Linf", eps=eps, steps=20, multi_targeted=True, n_classes=5
        )(x, y)
        ours = FAB(model, eps, 20, targets=4).run(x, y)
        assert torch.equal(ours.success, fooled(model, theirs, y))
        assert 0 < ours.success.sum() < 12


@pytest.mark.parametrize(
    ("options", "match"),
    [({"steps": 0}, "^steps .*0"), ({"targets": 0}, "^targets .*0"), ({"eps": 8}, "^eps .*8/255")],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        FAB(Linear(), **options)
