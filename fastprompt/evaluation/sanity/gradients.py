"""Checks of the gradient: is there one, and does it point to a higher loss?"""

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ...attacks.ascent import evaluating, mean_gradient
from ...attacks.health import ZERO_SHARE
from ...attacks.losses import cross_entropy, margin
from ...attacks.random_start import random_start
from .sample import Sample
from .verdict import Verdict

_LOSSES = {"cross-entropy": cross_entropy, "margin": margin}
_UNHEALTHY = 0.05
_BEATS_CHANCE = 0.7  # honest models: nearly all images; a gradient that says nothing: one half


def _gradient(sample: Sample, name: str, images: Tensor) -> tuple[Tensor, bool]:
    """The loss's gradient in the pixels, and whether the logits have a graph at all."""
    attached = []

    def loss_of(x: Tensor) -> Tensor:
        logits = at_least_float32(sample.model(x))
        attached.append(logits.requires_grad)
        return _LOSSES[name](logits, sample.labels).sum()

    with torch.enable_grad(), evaluating(sample.model):
        return mean_gradient(sample.samples)(loss_of, images), all(attached)


def gradient_health(sample: Sample) -> Verdict:
    """Gradients that are cut, zero or not finite; a loss that saturates while another works."""
    if not len(sample):
        return Verdict("gradient health", "skipped", "no image is classified rightly")
    figures: dict[str, float] = {}
    dead: dict[str, float] = {}
    for name in _LOSSES:
        grad, attached = _gradient(sample, name, sample.images)
        if not attached:
            return Verdict.of(
                "gradient health",
                "the logits have no graph back to the pixels: they are detached, or made under "
                "no_grad",
            )
        flat = grad.flatten(1)
        odd = (~flat.isfinite()).any(dim=1).float().mean()
        zero = ((flat == 0).float().mean(dim=1) > ZERO_SHARE).float().mean()
        figures[f"{name}: without a gradient"] = float(zero)
        figures[f"{name}: not finite"] = float(odd)
        if odd > 0:
            return Verdict.of(
                "gradient health",
                f"the gradient of {name} is NaN or infinite for {float(odd):.0%} of the images",
                **figures,
            )
        dead[name] = float(zero)
    return Verdict.of("gradient health", _zero_reason(dead), **figures)


def _zero_reason(dead: dict[str, float]) -> str:
    through, scaled = dead["margin"], dead["cross-entropy"]
    if through > _UNHEALTHY:
        return (
            f"the gradient is zero for {through:.0%} of the images: something between pixels and "
            "logits cuts it (rounding, arg max, a hard threshold): attack through a "
            "straight-through estimate, or a black box"
        )
    if scaled > _UNHEALTHY:
        return (
            f"the logits are so large that cross-entropy saturates: its gradient is zero for "
            f"{scaled:.0%} of the images, that of the margin is not: a temperature hides the "
            "gradient. Attack with cw, apgd-dlr or autoattack"
        )
    return ""


def temperature(sample: Sample) -> Verdict:
    """Logits so close together that cross-entropy hardly tells the classes apart."""
    if not len(sample):
        return Verdict("temperature", "skipped", "no image is classified rightly")
    logits = sample.clean.double()
    classes = logits.shape[1]
    flat = float(logits.softmax(dim=1).amax(dim=1).mean()) * classes - 1
    reason = (
        f"the logits differ by {float((logits.amax(1) - logits.amin(1)).mean()):.1e} alone: a huge "
        "temperature flattens them, and losses on probabilities lose their direction. Attack with "
        "cw, apgd-dlr or autoattack"
        if flat < 0.01
        else ""
    )
    return Verdict.of("temperature", reason, above_chance=flat)


def direction(sample: Sample) -> Verdict:
    """A step along the gradient's sign raises the loss more than a random step of its size."""
    if not len(sample):
        return Verdict("gradient direction", "skipped", "no image is classified rightly")
    grad, _ = _gradient(sample, "margin", sample.images)
    shares = {}
    for part in (1.0, 0.25):
        eps = part * sample.eps
        along = (sample.images + eps * grad.sign()).clamp(0, 1)
        noise = random_start(
            sample.images, 1.0, sample.indices, seed=sample.seed, restart=991, sides="two-sided"
        )
        aside = (sample.images + eps * (noise - sample.images).sign()).clamp(0, 1)
        raised, chance = (margin(sample.logits(x), sample.labels) for x in (along, aside))
        shares[f"at {255 * eps:g}/255"] = float((raised > chance).float().mean())
    best = max(shares.values())
    reason = (
        f"the gradient does not point to a higher loss: a step along it beats a random one for "
        f"{best:.0%} of the images alone. It may be masked, shuffled or of another function"
        if best < _BEATS_CHANCE
        else ""
    )
    return Verdict.of("gradient direction", reason, **shares)
