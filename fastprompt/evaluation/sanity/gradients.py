"""Checks that the gradient exists and points to a higher loss."""

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
_BEATS_CHANCE = 0.7  # share of images: near 1 for honest models, 1/2 for random gradients
_AGREES = 0.7  # cosine with the measured gradient; differentiable models: at least 0.85
_MOVES = (1 / 255, 4 / 255)  # a model that rounds to 8-bit levels ignores smaller moves
_ESTIMATES = (JPEG, BitDepth)
_DIRECTIONS = 48  # over all images together, at least 4 per image


def _gradient(sample: Sample, name: str, images: Tensor) -> tuple[Tensor, bool]:
    """Return the loss's gradient in the pixels, and whether the logits have a graph."""
    attached = []

    def loss_of(x: Tensor) -> Tensor:
        logits = at_least_float32(sample.model(x))
        attached.append(logits.requires_grad)
        return _LOSSES[name](logits, sample.labels).sum()

    with torch.enable_grad(), evaluating(sample.model):
        return mean_gradient(sample.samples)(loss_of, images), all(attached)


def gradient_health(sample: Sample) -> Verdict:
    """Detect missing, zero or non-finite gradients, and a saturated cross-entropy."""
    if not len(sample):
        return Verdict("gradient health", "skipped", "no image is classified correctly")
    figures: dict[str, float] = {}
    dead: dict[str, float] = {}
    for name in _LOSSES:
        grad, attached = _gradient(sample, name, sample.images)
        if not attached:
            return Verdict.of(
                "gradient health",
                "the logits have no graph back to the pixels: they are detached, or computed "
                "under no_grad",
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
            f"the gradient is zero for {through:.0%} of the images: an operation between pixels "
            "and logits has zero gradient (rounding, argmax, a hard threshold). Use a "
            "straight-through estimate, or a black-box attack"
        )
    if scaled > _UNHEALTHY:
        return (
            f"the logits are so large that cross-entropy saturates: its gradient is zero for "
            f"{scaled:.0%} of the images, but the margin's is not, so a temperature masks the "
            "gradient. Attack with cw, apgd-dlr or autoattack"
        )
    return ""


def temperature(sample: Sample) -> Verdict:
    """Detect logits so close together that cross-entropy hardly separates the classes."""
    if not len(sample):
        return Verdict("temperature", "skipped", "no image is classified correctly")
    logits = sample.clean.double()
    classes = logits.shape[1]
    flat = float(logits.softmax(dim=1).amax(dim=1).mean()) * classes - 1
    reason = (
        f"the logits differ by only {float((logits.amax(1) - logits.amin(1)).mean()):.1e}: a huge "
        "temperature flattens them, and losses on probabilities give no useful direction. Attack "
        "with cw, apgd-dlr or autoattack"
        if flat < 0.01
        else ""
    )
    return Verdict.of("temperature", reason, above_chance=flat)


def direction(sample: Sample) -> Verdict:
    """Check that a gradient sign step raises the loss more than a random step of equal size."""
    if not len(sample):
        return Verdict("gradient direction", "skipped", "no image is classified correctly")
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
        f"only {best:.0%} of the images. It may be masked, shuffled or that of another function"
        if best < _BEATS_CHANCE
        else ""
    )
    return Verdict.of("gradient direction", reason, **shares)


def measured_gradient(sample: Sample) -> Verdict:
    """Compare the gradient with finite differences of the margin, on the images and beside them.

    The change of the margin along random signs is compared with the change that the gradient
    predicts; over many directions, their correlation is the cosine between the gradient and the
    true gradient. A gradient can increase the loss and still be mostly noise: it may be shattered,
    or correct only on clean images, where no attack step evaluates it.
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
        f"{worst:.2f}. It is shattered, or partly that of another function, so attacks are weak. "
        "If it is a straight-through estimate, report a black-box attack as well"
        if not worst >= _AGREES
        else ""
    )
    return Verdict.of(name, reason, **figures)


def _without_estimates(sample: Sample) -> Sample:
    """Remove the library's straight-through estimates, since their gradients are not slopes.

    Other modules stay: a module that only claims to be an estimate may shuffle the gradient.
    """
    model = sample.model
    if type(model) is not Defended:
        return sample
    kept = [part for part in model.defenses if type(part) not in _ESTIMATES]
    return replace(sample, model=Defended(model.classifier, *kept))


def _agreement(sample: Sample, points: Tensor) -> float:
    """Return the mean cosine of the gradient with measured slopes, at the best move size.

    An image whose margin does not change has no slope to compare with; its cosine is 0.
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
    """Return predicted and measured margin changes along random signs, both ``[B, K]``."""
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
