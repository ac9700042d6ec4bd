"""Checks that the outputs are finite, repeatable, and equal in any batch and under attack."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..._utils.dtypes import at_least_float32
from ...attacks.ascent import evaluating
from .sample import REPEATS, SAME, Sample, difference
from .verdict import Verdict

_LOW_PRECISION = 0.05  # tolerance for bfloat16 towers, relative to the logits' spread
# standard errors between two averages of a random model's logits; the largest of many logits is
# compared, and 20 passes have heavier tails than the normal distribution
_ERRORS = 6.0


def finite(sample: Sample) -> Verdict:
    """Check for finite logits: with infinite ones, losses are NaN and attacks do not move."""
    share = float((~sample.clean.isfinite()).any(dim=1).float().mean())
    reason = (
        f"logits are NaN or infinite for {share:.0%} of the images: their losses are meaningless"
        if share
        else ""
    )
    return Verdict.of("finite logits", reason, not_finite=share)


def repeatable(sample: Sample) -> Verdict:
    """Compare two passes over the same images: randomized models need averaged gradients.

    A model that declares itself random but gives equal passes is checked like any other.
    """
    figures = {"difference": sample.changed, "samples": sample.samples, "noise": sample.noise}
    if sample.noise == "none":
        note = "two passes are equal: the model is not random, although it says so"
        return Verdict("repeatable", "passed", note if sample.randomized else "", figures)
    if sample.samples > 1:
        return Verdict(
            "repeatable",
            "passed",
            f"the model is random: gradients are means of {sample.samples} passes",
            figures,
        )
    return Verdict.of(
        "repeatable",
        f"outputs are random: two passes over the same images differ by {sample.changed:.1%} of "
        "the logits' spread. Attack the expected loss: set the attribute randomized = True on the "
        "model, or pass samples=20",
        **figures,
    )


def attack_path(sample: Sample) -> Verdict:
    """Check that attacked and evaluated logits agree, including prompts, router and defenses."""
    fixed = sample.fixed(1)
    off = difference(fixed.clean, _with_gradients(fixed))
    figures = {"difference": off}
    apart = not off <= SAME
    if apart and sample.noise != "none":
        figures = _averages(lambda: sample.logits(sample.images), lambda: _with_gradients(sample))
        off = figures["difference"]
        apart = _differ(figures)
    reason = (
        f"the model behaves differently when gradients are computed: its logits differ by "
        f"{off:.1%} of their spread, so the attacked model is not the evaluated one"
        if apart
        else ""
    )
    return Verdict.of("attack path", reason, **figures)


def _with_gradients(sample: Sample) -> Tensor:
    parts = []
    with torch.enable_grad(), evaluating(sample.model):
        for part in sample.images.split(sample.batch):
            given = part.detach().clone().requires_grad_(True)
            parts.append(at_least_float32(sample.call(given)).detach())
    return torch.cat(parts)


def batch_split(sample: Sample) -> Verdict:
    """Check that an image's logits do not depend on the other images of its batch."""

    def alone() -> Tensor:
        with torch.no_grad(), evaluating(sample.model):
            return torch.cat([at_least_float32(sample.call(x)) for x in sample.images.split(3)])

    def turned() -> Tensor:
        with torch.no_grad(), evaluating(sample.model):
            return at_least_float32(sample.call(sample.images.flip(0))).flip(0)

    if sample.noise == "none":
        off = max(difference(sample.clean, way()) for way in (alone, turned))
        limit = SAME if sample.clean.dtype == torch.float64 else _LOW_PRECISION
        figures, apart = {"difference": off}, not off <= limit
    else:
        # random numbers depend on the batch, so that only averages compare
        figures = _averages(lambda: sample.logits(sample.images), alone)
        off, apart = figures["difference"], _differ(figures)
    reason = (
        f"an image's logits depend on its batch: they differ by {off:.1%} of their spread"
        if apart
        else ""
    )
    return Verdict.of("batch split", reason, **figures)


def _averages(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> dict[str, float]:
    """Compare the mean logits of two ways to compute them, in standard errors."""
    sides = [torch.stack([way() for _ in range(REPEATS)]).double() for way in (one, other)]
    means = [side.mean(dim=0) for side in sides]
    error = (torch.stack([side.var(dim=0) for side in sides]).sum(dim=0) / REPEATS).sqrt()
    spread = (means[0].amax(dim=1) - means[0].amin(dim=1)).mean().clamp_min(1e-12)
    # differences within rounding are not compared with errors that may be 0
    away = ((means[0] - means[1]).abs() - SAME * spread).clamp_min(0)
    return {
        "difference": difference(*means),
        "standard errors": float((away / error.clamp_min(1e-12 * spread)).amax()),
    }


def _differ(figures: dict[str, float]) -> bool:
    return not figures["standard errors"] <= _ERRORS


def precision(sample: Sample) -> Verdict:
    """Compare predictions with those in float64: if they differ, rounding decides."""
    model = sample.model
    twin = _in_float64(model)
    if twin is None or sample.noise != "none":
        # random numbers depend on the precision, too
        why = "the model is random" if twin is not None else "the model cannot run in float64"
        return Verdict("precision", "skipped", why)
    adv = sample.pgd(sample.eps, 10)
    with torch.no_grad(), evaluating(twin):
        wide = torch.cat([twin(part.double()) for part in adv.split(sample.batch)])
    differ = float((wide.argmax(1) != sample.logits(adv).argmax(1)).float().mean())
    reason = (
        f"{differ:.0%} of the predictions on adversarial images change in float64: rounding "
        "decides which images count as robust"
        if differ > 0.1
        else ""
    )
    return Verdict.of("precision", reason, differing=differ)


def _in_float64(model: object) -> nn.Module | None:
    if hasattr(model, "in_precision"):
        return model.in_precision("fp64")
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        return None
    try:
        return copy.deepcopy(model).double()
    except (RuntimeError, TypeError, copy.Error):
        return None
