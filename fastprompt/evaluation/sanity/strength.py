"""Checks that the attack stays in its ball and that no other attack is clearly stronger."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..._utils.types import Model
from ...attacks import APGD, Square
from ...attacks.apgd import APGDLoss
from ...attacks.losses import cross_entropy
from .sample import Sample
from .verdict import Verdict

_ROUNDING = 1e-6
_LUCK = 0.03  # tolerated share of the images, since random numbers differ


def _allowed(sample: Sample) -> int:
    return max(1, round(_LUCK * len(sample)))


def radius_zero(sample: Sample) -> Verdict:
    """Check that an attack of radius 0 changes nothing."""
    adv = sample.pgd(0.0, 2)
    moved = float((adv - sample.images).abs().amax())
    before, after = int(sample.right.sum()), sample.standing(adv)
    reason = ""
    if moved > 0:
        reason = f"with eps 0 the attack moved pixels by {moved:.1e}"
    elif before != after and not sample.randomized:
        reason = f"with eps 0 {after} images are classified correctly, clean {before}"
    return Verdict.of("radius zero", reason, moved=moved, clean=before, attacked=after)


def ball(sample: Sample) -> Verdict:
    """Check that images stay in the ball and in [0, 1], also when stored in 8 bits."""
    adv = sample.pgd(sample.eps, 5)
    out = float((adv - sample.images).abs().amax()) - sample.eps
    low, high = float(adv.amin()), float(adv.amax())
    stored = in_8_bits(adv, sample.images, sample.eps)
    out_stored = float((stored - sample.images).abs().amax()) - sample.eps
    standing = {"float": sample.standing(adv), "8 bits": sample.standing(stored)}
    reason = ""
    if max(out, out_stored) > _ROUNDING:
        reason = f"the perturbation leaves its ball by {max(out, out_stored):.1e}"
    elif low < 0 or high > 1:
        reason = f"adversarial pixels are in [{low:g}, {high:g}], outside [0, 1]"
    return Verdict.of("ball", reason, beyond=out, **standing)


def in_8_bits(adv: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the nearest 8-bit image within the ball, as an image file stores it."""
    low = ((images - eps) * 255 - 1e-3).ceil()
    high = ((images + eps) * 255 + 1e-3).floor()
    levels = torch.minimum(torch.maximum((adv * 255).round(), low), high)
    return (levels / 255).clamp(0, 1)


def unbounded(sample: Sample) -> Verdict:
    """Check that almost no image survives an unbounded attack."""
    steps = 20
    standing = sample.standing(sample.pgd(1.0, steps, alpha=4 / 255, stop=not sample.randomized))
    share = standing / max(1, len(sample))
    reason = (
        f"{share:.0%} of the images survive even an unbounded perturbation: the attack does not "
        "work"
        if share > 0.1
        else ""
    )
    return Verdict.of("unbounded radius", reason, standing=share)


def more_is_stronger(sample: Sample) -> Verdict:
    """Check that robust accuracy does not rise with the radius, the steps or the restarts."""
    eps = sample.eps
    series = {
        "radius": [
            (f"{255 * r:g}/255", sample.standing(sample.pgd(r, 20)))
            for r in (eps / 2, eps, 2 * eps)
        ],
        "steps": [(str(n), sample.standing(sample.pgd(eps, n))) for n in (2, 10, 50)],
        "restarts": [(str(n), sample.standing(sample.pgd(eps, 10, restarts=n))) for n in (1, 3)],
    }
    for what, points in series.items():
        for (less, before), (more, after) in pairwise(points):
            if after > before + _allowed(sample):
                return Verdict.of(
                    "more is stronger",
                    f"{after} of {len(sample)} images survive with {what} {more}, {before} with "
                    f"{less}: the attack's steps do not maximize the loss",
                    **{k: dict(v) for k, v in series.items()},
                )
    return Verdict.of("more is stronger", "", **{k: dict(v) for k, v in series.items()})


def leveled(sample: Sample) -> Verdict:
    """Check that the loss levels off within 100 steps, so that more steps would find little."""
    start = _loss(sample, sample.images)
    half, whole = (_loss(sample, sample.pgd(sample.eps, n)) for n in (50, 100))
    late = (whole - half) / max(1e-12, whole - start)
    reason = (
        f"the loss still rises: {late:.0%} of its increase occurs in the last 50 of 100 steps"
        if late > 0.2
        else ""
    )
    figures = {"clean": start, "50 steps": half, "100 steps": whole}
    return Verdict.of("loss levels off", reason, **figures)


def _loss(sample: Sample, adv: Tensor) -> float:
    return float(cross_entropy(sample.logits(adv), sample.labels).mean())


def other_losses(sample: Sample) -> Verdict:
    """Check that APGD and a scale-invariant loss fool few images that PGD misses."""
    shared: dict[str, Any] = {"seed": sample.seed, "batch": sample.batch, "samples": sample.samples}
    standing = {"pgd": sample.standing(sample.pgd(sample.eps, 40, stop=not sample.randomized))}
    losses: tuple[APGDLoss, ...] = ("ce", "dlr")
    for loss in losses:
        attack = APGD(
            sample.model,
            sample.eps,
            40,
            loss=loss,
            stop=not sample.randomized,
            **shared,
        )
        result = attack.run(sample.images, sample.labels, indices=sample.indices)
        standing[f"apgd-{loss}"] = sample.standing(result.images)
    gap = standing["pgd"] - min(standing.values())
    reason = (
        f"{gap} of {len(sample)} images survive PGD but not another loss or step size; "
        f"report autoattack ({', '.join(f'{k} leaves {v}' for k, v in standing.items())})"
        if gap > max(2, 0.1 * len(sample))
        else ""
    )
    return Verdict.of("other losses", reason, **standing)


def black_box(sample: Sample, queries: int = 200) -> Verdict:
    """Check that black-box and transfer attacks are not stronger than PGD."""
    white = sample.pgd(sample.eps, 20, stop=not sample.randomized)
    attack = Square(sample.model, sample.eps, queries, batch=sample.batch, seed=sample.seed)
    black = attack.run(sample.images, sample.labels, indices=sample.indices).images
    others = {
        f"transfer:{name}": _transferred(sample, model) for name, model in sample.surrogates.items()
    }
    return _not_stronger(sample, white, {"square": black, **others})


def _transferred(sample: Sample, model: Model) -> Tensor:
    return replace(sample, model=model).pgd(sample.eps, 20)


def _not_stronger(sample: Sample, white: Tensor, others: dict[str, Tensor]) -> Verdict:
    standing = {"pgd": sample.standing(white)}
    standing |= {name: sample.standing(adv) for name, adv in others.items()}
    for name in others:
        if standing[name] < standing["pgd"] - _allowed(sample):
            return Verdict.of(
                "black box",
                f"{name}, which does not use the model's gradient, leaves {standing[name]} of "
                f"{len(sample)} images, PGD leaves {standing['pgd']}: the gradient is masked",
                **standing,
            )
    return Verdict.of("black box", "", **standing)
