"""Checks that the gradient is the slope of the logits, near an image and on the way to another."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ...attacks.losses import margin, targeted_margin
from ...attacks.random_start import random_start
from ...data.dataset import evenly
from ...defenses import JPEG, BitDepth, Defended
from .sample import SIGMAS, Sample
from .verdict import Verdict

# cosine with the measured gradient at each place, and their mean; differentiable models: above 0.9
_AGREES, _ON_AVERAGE = 0.7, 0.85
_MOVES = (1 / 255, 4 / 255)  # a model that rounds to 8-bit levels ignores smaller moves
_ESTIMATES = (JPEG, BitDepth)
_DIRECTIONS = 24  # at each place, over all images together; at least 3 per image
_ATTACK_STEPS = 5  # before the place where an attack ends
_ROUNDS = 4  # repeats of a measurement that is not precise enough
_RATIO = (0.5, 2.0)  # measured slope over the gradient's, averages over random passes
_WAYS, _POINTS = 8, 8  # images with a path to another class, points on each path


# ---- near an image -------------------------------------------------------------------------------


def measured_gradient(sample: Sample) -> Verdict:
    """Compare the gradient with finite differences of the margin, at and near the images.

    The change of the margin along random signs is compared with the change that the gradient
    predicts; over many directions, their correlation is the cosine between the gradient and the
    true gradient. A gradient can increase the loss and still be mostly noise: it may be shattered,
    or correct only on clean images, where no attack step evaluates it. The places are the images,
    random points of their balls, and the points where an attack ends.

    A random model is measured with fixed random numbers, different ones at each place. If it has
    random numbers of its own, the slopes are compared with the gradients on average.
    """
    name = "measured gradient"
    places = _places(sample)
    if sample.noise == "free":
        bare = _without_estimates(sample)
        ratios = {where: _ratio(bare, points) for where, points in places.items()}
        return _of_ratios(name, ratios)
    figures = {
        where: _agreement(_without_estimates(sample.fixed(3 + draw)), points)
        for draw, (where, points) in enumerate(places.items())
    }
    where, worst = min(figures.items(), key=lambda item: item[1])
    reason = (
        f"the gradient is not the slope of the logits: {where} its cosine with the measured one is "
        f"{worst:.2f}. It is shattered, or partly that of another function, so attacks are weak. "
        "If it is a straight-through estimate, report a black-box attack as well"
        if not (worst >= _AGREES and sum(figures.values()) / len(figures) >= _ON_AVERAGE)
        else ""
    )
    return Verdict.of(name, reason, **figures)


def _places(sample: Sample) -> dict[str, Tensor]:
    beside = random_start(
        sample.images, sample.eps, sample.indices, seed=sample.seed, restart=992, sides="two-sided"
    )
    end = sample.fixed(3).pgd(sample.eps, _ATTACK_STEPS, loss=margin)
    return {"on the images": sample.images, "beside them": beside, "where an attack ends": end}


def _without_estimates(sample: Sample) -> Sample:
    """Remove the library's straight-through estimates, since their gradients are not slopes.

    Other modules stay: a module that only claims to be an estimate may shuffle the gradient.
    """
    model = sample.model
    if type(model) is not Defended:
        return sample
    kept = [part for part in model.defenses if not _is_estimate(part)]
    return replace(sample, model=Defended(model.classifier, *kept), known=sample.noise)


def _is_estimate(part: nn.Module) -> bool:
    """Whether a module computes what the library's class does: nothing overridden, no hooks."""
    own = {"forward", "defend"} & vars(part).keys()
    hooks = any(value for name, value in vars(part).items() if name.endswith("_hooks"))
    return type(part) in _ESTIMATES and not own and not hooks


def _agreement(sample: Sample, points: Tensor) -> float:
    """Return the mean cosine of the gradient with measured slopes, at the best move size.

    The margin is that over the wrong class with the largest logit at the point. Where two wrong
    classes are equal, the margin over the larger of them has a kink, and no slope. An image whose
    margin does not change has no slope to compare with; its cosine is 0.
    """
    rivals = sample.rivals(points)
    grad = sample.gradient(points, partial(targeted_margin, targets=rivals))[0].double()
    grad = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
    best = 0.0
    for size in _MOVES:
        moves = _moves(sample, points, size, rivals=rivals)
        pairs = [(_along(grad, up - down), seen) for up, down, seen in moves]
        said, seen = (torch.stack(side, dim=1) for side in zip(*pairs, strict=True))
        norms = said.norm(dim=1) * seen.norm(dim=1)
        cosines = (said * seen).sum(dim=1) / norms.clamp_min(1e-300)
        best = max(best, float(cosines.mean().nan_to_num(0.0)))
        if best >= _ON_AVERAGE:
            break
    return best


def _along(grad: Tensor, move: Tensor) -> Tensor:
    return (grad * move).flatten(1).sum(dim=1)


def _moves(
    sample: Sample, points: Tensor, size: float, again: int = 0, rivals: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield both ends of moves along random signs and the measured margin change, ``[B]``."""
    generator = torch.Generator().manual_seed(sample.seed + 7919 * again)
    for _ in range(max(3, -(-_DIRECTIONS // len(points)))):
        signs = torch.randint(0, 2, points.shape[1:], generator=generator) * 2.0 - 1
        signs = signs.to(points)
        up, down = ((points + way * size * signs).clamp(0, 1) for way in (1, -1))
        yield up, down, sample.margins(up, rivals) - sample.margins(down, rivals)


# ---- on average, for models with random numbers of their own -------------------------------------


def _ratio(sample: Sample, points: Tensor) -> tuple[float, float]:
    """Return the measured slope over the gradient's, and its standard error.

    It is 1 for a correct gradient. Two independent gradients predict the change: the noise of one
    would make the prediction seem too large. The measurement is repeated until it is precise.
    """
    first, second, measured = [], [], []
    for again in range(_ROUNDS):
        one, two = (sample.gradient(points)[0].double() for _ in range(2))
        for up, down, change in _moves(sample, points, _MOVES[-1], again):
            first.append(_along(one, up - down))
            second.append(_along(two, up - down))
            measured.append(change)
        said, other, seen = (torch.stack(side) for side in (first, second, measured))
        whole = (said * other).sum()
        ratio = (said * seen).sum() / whole
        off = said * (seen - ratio * other)
        found = float(ratio), float(off.square().sum().sqrt() / whole.abs())
        if _correct(*found) is not None:
            break
    return found


def _correct(ratio: float, error: float) -> bool | None:
    """Whether the slope is the gradient's; None if the standard error is too large to tell."""
    low, high = ratio - SIGMAS * error, ratio + SIGMAS * error
    if high < _RATIO[0] or low > _RATIO[1]:
        return False
    return True if low > _RATIO[0] else None


def _of_ratios(name: str, ratios: dict[str, tuple[float, float]]) -> Verdict:
    figures = {where: f"{ratio:.2f} +- {error:.2f}" for where, (ratio, error) in ratios.items()}
    known = {where: _correct(*found) for where, found in ratios.items()}
    for where, correct in known.items():
        if correct is False:
            return Verdict.of(
                name,
                f"the gradient is not the slope of the logits: {where} the measured slope is "
                f"{figures[where]} of the gradient's on average (with its standard error). The "
                "gradient is partly that of another function, so attacks are weak",
                **figures,
            )
    unknown = [where for where, correct in known.items() if correct is None]
    if not unknown:
        return Verdict.of(name, "", **figures)
    return Verdict(
        name,
        "skipped",
        f"the model's random numbers hide its slopes {unknown[0]}. Draw them from torch's global "
        "generator, so that the check can fix them, or pass more samples",
        figures,
        decisive=True,
    )


# ---- on the way to another class -----------------------------------------------------------------


def path_integral(sample: Sample) -> Verdict:
    """Compare the gradients on paths to another class with the change of the margin over the path.

    The integral of a gradient along a path is the change between its ends. If the margin changes by
    a jump, as after an argmax, or where the gradient is masked, the gradients that attacks follow
    explain none of it, even if they are slopes everywhere else.
    """
    name = "path integral"
    bare = _without_estimates(sample.fixed(6)).of(evenly(_WAYS, len(sample)))
    begin = bare.margins(bare.images)
    ends, end = _elsewhere(bare)
    ways = (end > 0) & (begin < 0)  # a random model may be wrong on the image itself
    if not ways.any():
        return Verdict(name, "skipped", "no path leads from an image's class to another")
    explained = torch.zeros_like(end)
    for point in range(_POINTS):
        part = (point + 0.5) / _POINTS
        grad = bare.gradient(bare.images + part * (ends - bare.images))[0].double()
        explained += _along(grad, ends - bare.images) / _POINTS
    share = float(explained[ways].sum() / (end - begin)[ways].sum().clamp_min(1e-300))
    reason = (
        f"the gradients along paths to another class explain {share:.0%} of the margin's change: "
        "it changes by jumps (argmax, a hard threshold, a look-up), or the gradient is masked "
        "there, so attacks cannot follow it. Report a black-box attack"
        if not (math.isfinite(share) and _RATIO[0] <= share <= _RATIO[1])
        else ""
    )
    return Verdict.of(name, reason, explained=share, paths=int(ways.sum()))


def _elsewhere(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return for each image the candidate of the largest margin, and that margin, ``[B]``."""
    x = sample.images
    generator = torch.Generator().manual_seed(sample.seed)
    noise = torch.rand(x.shape[1:], generator=generator, dtype=torch.float32).to(x)
    plain = torch.zeros_like(x), torch.ones_like(x), noise.expand_as(x)
    ends = torch.stack([x.roll(1, 0), x.roll(2, 0), 1 - x, *plain])
    margins = torch.stack([sample.margins(end) for end in ends])
    best = margins.nan_to_num(-math.inf).argmax(dim=0)
    image = torch.arange(len(x), device=x.device)
    return ends[best, image], margins[best, image]
