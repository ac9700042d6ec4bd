"""Checks that the outputs are finite, repeatable, and equal in any batch and under attack."""

import copy

import torch
from torch import Tensor, nn

from ..._utils.dtypes import at_least_float32
from ...attacks.ascent import evaluating
from .sample import Sample
from .verdict import Verdict

_LOW_PRECISION = 0.05  # tolerance for bfloat16 towers, relative to the logits' spread
_SAME = 1e-3  # relative tolerance for the same arithmetic in another order


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the logits' spread within an image."""
    if not len(a):
        return 0.0
    # equal infinities do not differ here: `finite` reports them
    a, b = (torch.where((a == b) & a.isinf(), 0.0, part) for part in (a, b))
    spread = (a.amax(dim=1) - a.amin(dim=1)).mean().clamp_min(1e-12)
    return float((a - b).abs().amax() / spread)


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
    """Compare two passes over the same images: randomized models need averaged gradients."""
    off = _difference(sample.clean, sample.logits(sample.images))
    figures = {"difference": off, "samples": sample.samples}
    if off <= _SAME:
        return Verdict.of("repeatable", "", **figures)
    if sample.randomized and sample.samples > 1:
        return Verdict(
            "repeatable",
            "passed",
            f"the model is declared random: gradients are means of {sample.samples} passes",
            figures,
        )
    return Verdict.of(
        "repeatable",
        f"outputs are random: two passes over the same images differ by {off:.1%} of the logits' "
        "spread. Attack the expected loss: set the attribute randomized = True on the model, or "
        "pass samples=20",
        **figures,
    )


def attack_path(sample: Sample) -> Verdict:
    """Check that attacked and evaluated logits agree, including prompts, router and defenses."""
    if sample.randomized:
        return Verdict("attack path", "skipped", "the model is random")
    parts = []
    with torch.enable_grad(), evaluating(sample.model):
        for part in sample.images.split(sample.batch):
            given = part.detach().clone().requires_grad_(True)
            parts.append(at_least_float32(sample.model(given)).detach())
    off = _difference(sample.clean, torch.cat(parts))
    reason = (
        f"the model behaves differently when gradients are computed: its logits differ by "
        f"{off:.1%} of their spread, so the attacked model is not the evaluated one"
        if not off <= _SAME
        else ""
    )
    return Verdict.of("attack path", reason, difference=off)


def batch_split(sample: Sample) -> Verdict:
    """Check that an image's logits do not depend on the other images of its batch."""
    if sample.randomized:
        return Verdict("batch split", "skipped", "the model is random")
    with torch.no_grad(), evaluating(sample.model):
        alone = torch.cat([at_least_float32(sample.model(x)) for x in sample.images.split(3)])
        turned = at_least_float32(sample.model(sample.images.flip(0))).flip(0)
    off = max(_difference(sample.clean, alone), _difference(sample.clean, turned))
    limit = _SAME if sample.clean.dtype == torch.float64 else _LOW_PRECISION
    reason = (
        f"an image's logits depend on its batch: they differ by {off:.1%} of their spread"
        if not off <= limit
        else ""
    )
    return Verdict.of("batch split", reason, difference=off)


def precision(sample: Sample) -> Verdict:
    """Compare predictions with those in float64: if they differ, rounding decides."""
    model = sample.model
    twin = _in_float64(model)
    if twin is None or sample.randomized:
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
