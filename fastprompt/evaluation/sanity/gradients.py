"""Checks that the gradient exists and points to a higher loss."""

from ...attacks.health import ZERO_SHARE
from ...attacks.losses import cross_entropy, margin
from ...attacks.random_start import random_start
from .sample import Sample
from .verdict import Verdict

_LOSSES = {"cross-entropy": cross_entropy, "margin": margin}
_UNHEALTHY = 0.05
_BEATS_CHANCE = 0.7  # share of images: near 1 for honest models, 1/2 for random gradients


def gradient_health(sample: Sample) -> Verdict:
    """Detect missing, zero or non-finite gradients, and a saturated cross-entropy."""
    if not len(sample):
        return Verdict("gradient health", "skipped", "no image is classified correctly")
    sample = sample.fixed(11)
    figures: dict[str, float] = {}
    dead: dict[str, float] = {}
    for name, loss in _LOSSES.items():
        grad, attached = sample.gradient(sample.images, loss)
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
    sample = sample.fixed(2)
    grad, _ = sample.gradient(sample.images)
    shares = {}
    for part in (1.0, 0.25):
        eps = part * sample.eps
        along = (sample.images + eps * grad.sign()).clamp(0, 1)
        noise = random_start(
            sample.images, 1.0, sample.indices, seed=sample.seed, restart=991, sides="two-sided"
        )
        aside = (sample.images + eps * (noise - sample.images).sign()).clamp(0, 1)
        raised, chance = (sample.margins(x) for x in (along, aside))
        shares[f"at {255 * eps:g}/255"] = float((raised > chance).float().mean())
    best = max(shares.values())
    reason = (
        f"the gradient does not point to a higher loss: a step along it beats a random one for "
        f"only {best:.0%} of the images. It may be masked, shuffled or that of another function"
        if best < _BEATS_CHANCE
        else ""
    )
    return Verdict.of("gradient direction", reason, **shares)
