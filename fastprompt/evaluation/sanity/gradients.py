"""Checks of the gradient: is there one, and does it point to a higher loss?"""

from dataclasses import replace

import torch
from torch import Tensor

from ..._utils.dtypes import at_least_float32
from ...attacks.ascent import evaluating, mean_gradient
from ...attacks.health import ZERO_SHARE
from ...attacks.losses import cross_entropy, margin
from ...attacks.random_start import random_start
from ...defenses import JPEG, BitDepth, Defended
from .sample import Sample
from .verdict import Verdict

_LOSSES = {"cross-entropy": cross_entropy, "margin": margin}
_UNHEALTHY = 0.05
_BEATS_CHANCE = 0.7  # honest models: nearly all images; a gradient that says nothing: one half
_AGREES = 0.7  # cosine with the measured gradient; differentiable models: 0.85 and more
_MOVES = (1 / 255, 4 / 255)  # a model that works in whole 8-bit levels sees no smaller ones
_ESTIMATES = (JPEG, BitDepth)
_DIRECTIONS = 48  # over all images together, 4 for each at least


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


def measured_gradient(sample: Sample) -> Verdict:
    """The gradient is the slope of the logits, on the images and beside them.

    The margin is measured on both sides of a point along random signs, and compared with what the
    gradient says of it: over many directions the two correlate as the cosine between the gradient
    and the true one. A gradient can lead upwards and still be mostly noise: a shattered one, or one
    that is true on clean images alone, where the attack never stands.
    """
    name = "measured gradient"
    if sample.randomized:
        return Verdict(name, "skipped", "the model is random")
    bare = _without_estimates(sample)
    start = random_start(
        bare.images, bare.eps, bare.indices, seed=bare.seed, restart=992, sides="two-sided"
    )
    figures = {
        where: _agreement(bare, points)
        for where, points in {"on the images": bare.images, "beside them": start}.items()
    }
    where, worst = min(figures.items(), key=lambda item: item[1])
    reason = (
        f"the gradient is not the slope of the logits: {where} its cosine with the measured one is "
        f"{worst:.2f}. It is shattered, or partly of another function: an attack along it is weak. "
        "If it is a straight-through estimate, a black box has to be shown as well"
        if not worst >= _AGREES
        else ""
    )
    return Verdict.of(name, reason, **figures)


def _without_estimates(sample: Sample) -> Sample:
    """Without the library's own straight-through estimates: their gradients are no slopes.

    They alone: anyone else's module may call itself one and shuffle the gradient.
    """
    model = sample.model
    if type(model) is not Defended:
        return sample
    kept = [part for part in model.defenses if type(part) not in _ESTIMATES]
    return replace(sample, model=Defended(model.classifier, *kept))


def _agreement(sample: Sample, points: Tensor) -> float:
    """The mean cosine of the gradient with the slopes measured, at the size of move it fits best.

    Images whose margin does not move at all have no slope to compare with; 0 if that is all.
    """
    grad = _gradient(replace(sample, images=points), "margin", points)[0].double()
    grad = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]
    best = 0.0
    for size in _MOVES:
        said, seen = _slopes(sample, points, grad, size)
        norms = said.norm(dim=1) * seen.norm(dim=1)
        cosines = (said * seen).sum(dim=1) / norms.clamp_min(1e-300)
        best = max(best, float(cosines.mean().nan_to_num(0.0)))
        if best >= _AGREES:
            break
    return best


def _slopes(sample: Sample, points: Tensor, grad: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """How the margin should change along random signs, and how it does, both ``[B, K]``."""
    generator = torch.Generator().manual_seed(sample.seed)
    said, seen = [], []
    for _ in range(max(4, -(-_DIRECTIONS // len(points)))):
        signs = torch.randint(0, 2, points.shape[1:], generator=generator) * 2.0 - 1
        signs = signs.to(points)
        up, down = ((points + way * size * signs).clamp(0, 1) for way in (1, -1))
        above, below = (margin(sample.logits(x), sample.labels).double() for x in (up, down))
        said.append((grad * (up - down)).flatten(1).sum(dim=1))
        seen.append(above - below)
    return torch.stack(said, dim=1), torch.stack(seen, dim=1)
