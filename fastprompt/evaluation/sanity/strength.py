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
_ROUNDED = 0.1  # tolerated share of images that only survive before rounding to 8 bits
_SUFFICES = 0.1  # tolerated share of images that survive an unbounded attack


def _stronger(sample: Sample, weak: Tensor, strong: Tensor, least: float) -> bool:
    """Whether clearly fewer images survive one attack than another, by survival ``[B]``.

    Images are compared in pairs. A random model's outcomes are averages over passes, and their
    difference must exceed ``least`` by 3 standard errors.
    """
    fewer = weak - strong
    return float(fewer.sum()) > least + sample.beyond(fewer)


def _allowed(sample: Sample) -> int:
    return max(1, round(_LUCK * len(sample)))


def _count(survival: Tensor) -> float:
    """Return the number of surviving images, for a random model the mean over its passes."""
    return round(float(survival.sum()), 1)


def radius_zero(sample: Sample) -> Verdict:
    """Check that an attack of radius 0 changes nothing."""
    sample = sample.fixed(8)
    adv = sample.pgd(0.0, 2)
    moved = float((adv - sample.images).abs().amax())
    before, after = int(sample.right.sum()), _count(sample.survival(adv))
    reason = ""
    if moved > 0:
        reason = f"with eps 0 the attack moved pixels by {moved:.1e}"
    elif before != after and sample.noise == "none":
        reason = f"with eps 0 {after:g} images are classified correctly, clean {before}"
    return Verdict.of("radius zero", reason, moved=moved, clean=before, attacked=after)


def ball(sample: Sample) -> Verdict:
    """Check that images stay in the ball and in [0, 1], also when stored in 8 bits."""
    sample = sample.fixed(9)
    adv = sample.pgd(sample.eps, 5)
    out = float((adv - sample.images).abs().amax()) - sample.eps
    low, high = float(adv.amin()), float(adv.amax())
    stored = in_8_bits(adv, sample.images, sample.eps)
    out_stored = float((stored - sample.images).abs().amax()) - sample.eps
    whole, rounded = sample.survival(adv), sample.survival(stored)
    standing = {"float": _count(whole), "8 bits": _count(rounded)}
    reason = ""
    if max(out, out_stored) > _ROUNDING:
        reason = f"the perturbation leaves its ball by {max(out, out_stored):.1e}"
    elif low < 0 or high > 1:
        reason = f"adversarial pixels are in [{low:g}, {high:g}], outside [0, 1]"
    elif _stronger(sample, whole, rounded, max(2, _ROUNDED * len(sample))):
        reason = (
            f"{standing['float']:g} of {len(sample)} images survive, but only "
            f"{standing['8 bits']:g} if their pixels are rounded to 8 bits: the model treats "
            "images that are not stored in 8 bits differently"
        )
    return Verdict.of("ball", reason, beyond=out, **standing)


def in_8_bits(adv: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the nearest 8-bit image within the ball, as an image file stores it."""
    low = ((images - eps) * 255 - 1e-3).ceil()
    high = ((images + eps) * 255 + 1e-3).floor()
    levels = torch.minimum(torch.maximum((adv * 255).round(), low), high)
    return (levels / 255).clamp(0, 1)


def unbounded(sample: Sample) -> Verdict:
    """Check that almost no image survives an unbounded attack."""
    sample = sample.fixed(10)
    adv = sample.pgd(1.0, 20, alpha=4 / 255, stop=sample.may_stop)
    survival = sample.survival(adv)
    share = float(survival.mean())
    allowed = max(1, _SUFFICES * len(sample)) + sample.beyond(survival)
    reason = (
        f"{share:.0%} of the images survive even an unbounded perturbation: the attack does not "
        "work"
        if float(survival.sum()) > allowed
        else ""
    )
    return Verdict.of("unbounded radius", reason, standing=share)


def more_is_stronger(sample: Sample) -> Verdict:
    """Check that robust accuracy does not rise with the radius, the steps or the restarts."""
    sample, eps = sample.with_few_samples, sample.eps
    series = {
        "radius": [
            (f"{255 * r:g}/255", sample.survival(sample.pgd(r, 20)))
            for r in (eps / 2, eps, 2 * eps)
        ],
        "steps": [(str(n), sample.survival(sample.pgd(eps, n))) for n in (2, 10, 50)],
        "restarts": [(str(n), sample.survival(sample.pgd(eps, 10, restarts=n))) for n in (1, 3)],
    }
    figures = {what: {at: _count(kept) for at, kept in points} for what, points in series.items()}
    for what, points in series.items():
        for (less, before), (more, after) in pairwise(points):
            if _stronger(sample, after, before, _allowed(sample)):
                return Verdict.of(
                    "more is stronger",
                    f"{_count(after):g} of {len(sample)} images survive with {what} {more}, "
                    f"{_count(before):g} with {less}: the attack's steps do not maximize the loss",
                    **figures,
                )
    return Verdict.of("more is stronger", "", **figures)


def leveled(sample: Sample) -> Verdict:
    """Check that the loss levels off within 100 steps, so that more steps would find little."""
    sample = sample.with_few_samples
    start = _loss(sample, sample.images)
    half, whole = (_loss(sample, sample.pgd(sample.eps, n)) for n in (50, 100))
    rise, late = (whole - start).sum(), (whole - half).sum() - sample.beyond(whole - half)
    share = float(late / rise.clamp_min(1e-12))
    reason = (
        f"the loss still rises: {share:.0%} of its increase occurs in the last 50 of 100 steps"
        if share > 0.2
        else ""
    )
    figures = {"clean": start, "50 steps": half, "100 steps": whole}
    means = {name: float(loss.mean()) for name, loss in figures.items()}
    return Verdict.of("loss levels off", reason, **means)


def _loss(sample: Sample, adv: Tensor) -> Tensor:
    every = [cross_entropy(sample.logits(adv), sample.labels) for _ in range(sample.repeats)]
    return torch.stack(every).double().mean(dim=0)


def other_losses(sample: Sample) -> Verdict:
    """Check that APGD and a scale-invariant loss fool few images that PGD misses."""
    sample = sample.with_few_samples
    shared: dict[str, Any] = {
        "seed": sample.seed,
        "batch": sample.batch,
        "samples": sample.averaged,
        "stop": sample.may_stop,
    }
    kept = {"pgd": sample.survival(sample.pgd(sample.eps, 40, stop=sample.may_stop))}
    losses: tuple[APGDLoss, ...] = ("ce", "dlr")
    for loss in losses:
        attack = APGD(sample.call, sample.eps, 40, loss=loss, **shared)
        adv = attack.run(sample.images, sample.labels, indices=sample.indices).images
        kept[f"apgd-{loss}"] = sample.survival(adv)
    standing = {name: _count(survival) for name, survival in kept.items()}
    best = min(kept, key=lambda name: float(kept[name].sum()))
    reason = (
        f"{standing['pgd'] - standing[best]:g} of {len(sample)} images survive PGD but not another "
        "loss or step size; report autoattack "
        f"({', '.join(f'{k} leaves {v:g}' for k, v in standing.items())})"
        if _stronger(sample, kept["pgd"], kept[best], max(2, 0.1 * len(sample)))
        else ""
    )
    return Verdict.of("other losses", reason, **standing)


def black_box(sample: Sample, queries: int = 200) -> Verdict:
    """Check that black-box and transfer attacks are not stronger than PGD."""
    white = sample.pgd(sample.eps, 20, stop=sample.may_stop)
    others = {
        f"transfer:{name}": _transferred(sample, model) for name, model in sample.surrogates.items()
    }
    attack = Square(sample.call, sample.eps, queries, batch=sample.batch, seed=sample.seed)
    others["square"] = attack.run(sample.images, sample.labels, indices=sample.indices).images
    return _not_stronger(sample, white, others)


def _transferred(sample: Sample, model: Model) -> Tensor:
    return replace(sample, model=model, known=None).pgd(sample.eps, 20)


def _not_stronger(sample: Sample, white: Tensor, others: dict[str, Tensor]) -> Verdict:
    kept = {name: sample.survival(adv) for name, adv in {"pgd": white, **others}.items()}
    standing = {name: _count(survival) for name, survival in kept.items()}
    for name in others:
        if _stronger(sample, kept["pgd"], kept[name], _allowed(sample)):
            return Verdict.of(
                "black box",
                f"{name}, which does not use the model's gradient, leaves {standing[name]:g} of "
                f"{len(sample)} images, PGD leaves {standing['pgd']:g}: the gradient is masked",
                **standing,
            )
    return Verdict.of("black box", "", **standing)
