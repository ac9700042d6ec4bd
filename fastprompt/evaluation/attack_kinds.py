"""The kinds of attacks that an evaluation knows: their settings, and functions that run them."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from ..attacks import APGD, DIFGSM, MIFGSM, PGD, TIFGSM, TPGD, AttackResult, FeaturePGD
from ..attacks.autoattack import STANDARD, TARGETS
from ..attacks.base import Attack
from ..attacks.losses import cross_entropy, margin
from ..model.classifier import CLIPClassifier
from .stages import How, Run

Made = tuple[dict[str, Any], Run]  # an attack's settings, and the function that runs it


def counts(how: How, best: str = "last iterate") -> dict[str, Any]:
    """Return the settings that say which iterates count."""
    counted = "any iterate" if how.stop else best
    return {"counts": counted, "samples": how.samples}


def runs(make: Callable[..., Attack], eps: float, steps: int, how: How, **options: Any) -> Run:
    """Return a function that builds the attack with ``make`` and runs it."""

    def run(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        attack = make(model, eps, steps, batch=how.batch, seed=how.seed, **options)
        return attack.run(images, labels, indices=indices)

    return run


def pgd(kind: str, eps: float, steps: int, how: How, alpha: float | None = None) -> Made:
    """Return PGD, or CW on the margin; by default the step size is eps/4."""
    alpha = alpha or eps / 4 or 1 / 255
    settings = {
        "steps": steps,
        "alpha": alpha,
        "random_start": True,
        "restarts": 1,
        "loss": "cross-entropy" if kind == "pgd" else "margin",
        **counts(how),
    }
    loss = cross_entropy if kind == "pgd" else margin

    def make(model: Any, eps: float, steps: int, **options: Any) -> Attack:
        return PGD(model, eps, alpha, steps, loss=loss, **options)

    return settings, runs(make, eps, steps, how, samples=how.samples, stop=how.stop)


def _tpgd(kind: str, eps: float, steps: int, how: How) -> Made:
    alpha = eps / 4
    settings = {
        "steps": steps,
        "alpha": alpha,
        "start": "N(0, 0.001)",
        "restarts": 1,
        "loss": "KL to the clean prediction",
        **counts(how),
    }

    def make(model: Any, eps: float, steps: int, **options: Any) -> Attack:
        return TPGD(model, eps, alpha, steps, **options)

    return settings, runs(make, eps, steps, how, samples=how.samples, stop=how.stop)


_TRANSFER = {"mi-fgsm": MIFGSM, "di-fgsm": DIFGSM, "ti-fgsm": TIFGSM}


def _transfer(kind: str, eps: float, steps: int, how: How) -> Made:
    alpha = eps / steps if eps else 1 / 255

    def make(model: Any, eps: float, steps: int, **options: Any) -> MIFGSM:
        return _TRANSFER[kind](model, eps, alpha, steps, **options)

    own = make(_no_model, eps, steps)
    settings = {
        "steps": steps,
        "alpha": alpha,
        "random_start": False,
        "loss": "cross-entropy",
        "decay": own.decay,
        **counts(how),
    }
    if kind == "di-fgsm":
        settings |= {"resize_rate": own.resize_rate, "diversity_prob": own.diversity_prob}
    if own.kernel is not None:
        settings["kernel"] = f"Gaussian, {len(own.kernel)} pixels"
    return settings, runs(make, eps, steps, how, samples=how.samples, stop=how.stop)


def _no_model(images: Tensor) -> Tensor:
    raise AssertionError("the attack is built for its settings alone")


def _apgd_dlr(model: Any, eps: float, steps: int, **options: Any) -> Attack:
    return APGD(model, eps, steps, loss="dlr", **options)


def _apgd(kind: str, eps: float, steps: int, how: How) -> Made:
    loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "targeted-dlr"}[kind]
    best = "highest loss" + (", then largest margin" if kind == "apgd-t" else "")
    settings = {"steps": steps, "loss": loss, "restarts": 1, **counts(how, best)}
    if kind == "apgd-t":
        settings["targets"] = TARGETS
    make = STANDARD[kind].make if kind in STANDARD else _apgd_dlr
    return settings, runs(make, eps, steps, how, samples=how.samples, stop=how.stop)


def _fab(kind: str, eps: float, steps: int, how: How) -> Made:
    settings = {"steps": steps, "targets": TARGETS, "restarts": 1}
    return settings, runs(STANDARD[kind].make, eps, steps, how)


def _square(kind: str, eps: float, queries: int, how: How) -> Made:
    settings = {"queries": queries, "loss": "margin", "restarts": 1}
    return settings, runs(STANDARD[kind].make, eps, queries, how)


def _blind(model: Any) -> bool:
    return not getattr(model, "has_visual_prompts", True)


def takes_twin(model: Any) -> bool:
    """Whether the feature attack uses the classifier's own encoder, which its twin converts."""
    return _blind(model) and type(model) is CLIPClassifier


def encoder_of(model: Any) -> Hashable:
    """Return what identifies the encoder that the feature attack uses on a model."""
    if not _blind(model):
        return id(model.clip)
    if type(model) is not CLIPClassifier:  # a subclass may encode in another way
        return None
    return id(model.clip), model.engine, model.precision


def _feature(kind: str, eps: float, steps: int, how: How) -> Made:
    settings = {
        "steps": steps,
        "alpha": 1.25 * eps / steps,
        "start": "two-sided",
        "loss": "feature KL",
        "counts": "last iterate",
        "crafted": "once for all models with the same image encoder",
    }

    def run(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        # use the classifier's faster image tower unless it has visual prompts
        encode = model.encode_image if _blind(model) else model.clip.encode_image
        counting = getattr(model, "counting", None)
        attack = FeaturePGD(counting(encode) if counting else encode, eps, steps, seed=how.seed)
        batches = zip(images.split(how.batch), indices.split(how.batch), strict=True)
        return AttackResult.join([attack.run(x, indices=i) for x, i in batches])

    return settings, run


KINDS: Mapping[str, Callable[[str, float, int, How], Made]] = {
    "pgd": pgd,
    "cw": pgd,
    "apgd-ce": _apgd,
    "apgd-dlr": _apgd,
    "apgd-t": _apgd,
    "fab-t": _fab,
    "square": _square,
    "feature-pgd": _feature,
    "tpgd": _tpgd,
    **dict.fromkeys(_TRANSFER, _transfer),
}
