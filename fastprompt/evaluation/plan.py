"""Build the attacks of an evaluation from their names."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    Fraction,
    check_count,
    check_text,
    parse_fraction,
    shown,
)
from .._utils.names import unknown
from ..attacks import APGD, DIFGSM, MIFGSM, PGD, TIFGSM, TPGD, AttackResult, FeaturePGD
from ..attacks.autoattack import STANDARD, TARGETS
from ..attacks.base import Attack
from ..attacks.losses import cross_entropy, margin
from ..model.classifier import CLIPClassifier
from . import other_attacks

KNOWN = (
    *("clean", "pgd-20", "pgd-100", "cw-100", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"),
    *("autoattack", "feature-pgd-40", "tpgd-20", "mi-fgsm-10", "di-fgsm-10", "ti-fgsm-10"),
)
_NAME = re.compile(
    r"(?P<kind>pgd|cw|apgd-ce|apgd-dlr|apgd-t|fab-t|square|feature-pgd|tpgd|mi-fgsm|di-fgsm|ti-fgsm)"
    r"(?:-(?P<steps>[1-9][0-9]*))?(?::(?P<alpha>[0-9./]+))?"
)
_FIXED_STEPS = ("pgd", "cw", "feature-pgd")  # attacks whose last iterate published code scores
_CLIMBING = ("pgd", "cw", "apgd")
_LONGEST = 200  # characters of an attack's name, with that of its surrogate
_WITH_STEPS = ("pgd", "cw", "feature-pgd", "tpgd", "mi-fgsm", "di-fgsm", "ti-fgsm")
_STEPS = {"apgd-dlr": 100} | {name: standard.steps for name, standard in STANDARD.items()}


@dataclass(frozen=True)
class How:
    """Settings that all attacks of an evaluation share.

    Attributes:
        seed: seed of the random starts and of Square's squares.
        batch: number of images attacked at once.
        stop: a fooled image leaves its batch, and counts as fooled if any iterate fools the model.
        samples: gradients averaged in each step, for randomized models.
        alone: PGD, CW and the feature attack are scored as in published code: on all images, by the
            accuracy on their last iterates alone.
    """

    seed: int = 0
    batch: int = 128
    stop: bool = True
    samples: int = 1
    alone: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that identify an evaluation; earlier versions had no ``alone``."""
        return {k: v for k, v in asdict(self).items() if k != "alone" or v}


Run = Callable[[Any, Tensor, Tensor, Tensor], AttackResult]


@dataclass(frozen=True)
class Stage:
    """One attack: its name, the settings that reproduce it, and a function that runs it.

    ``run`` takes the attacked model, images, labels and the images' indices. ``made_on`` returns
    the part of a model that the images depend on, None for all of it: models with an equal part
    get the same adversarial images. ``takes_twin`` returns whether the search may run on a model's
    twin in another precision.
    """

    name: str
    settings: dict[str, Any]
    run: Run
    made_on: Callable[[Any], Hashable] = lambda model: None
    takes_twin: Callable[[Any], bool] = lambda model: True

    @property
    def last(self) -> int:
        """Index of the last iterate, counted over all targets."""
        steps: int = self.settings.get("steps", self.settings.get("queries", 0))
        return self.settings.get("targets", 1) * (steps + 1) - 1


@dataclass(frozen=True)
class Planned:
    """One attack at one radius.

    Attributes:
        name: name as given.
        path: ``adaptive`` (uses the evaluated model's gradient), ``black-box`` (uses only its
            logits), ``transfer:image-encoder`` (ignores the prompts) or ``transfer:NAME`` (crafted
            on a surrogate).
        eps: radius in pixel units.
        stages: attacks, each run on the images that survived the previous ones.
        alone: whether all images are attacked, also those that are misclassified when clean.
    """

    name: str
    path: str
    eps: float
    stages: tuple[Stage, ...]
    alone: bool = False

    @property
    def surrogate(self) -> str | None:
        """Name of the surrogate on which the attack is crafted, or None."""
        return self.path.removeprefix("transfer:") if "@" in self.name else None

    @property
    def confirming(self) -> Stage:
        """The stage that attacks surviving images again in the model's own precision.

        It is the last one that climbs a loss within the radius, for AutoAttack ``apgd-t``: rounding
        may change each of its steps. FAB follows the decision boundary from outside the radius, and
        Square, which uses no gradient, would take as long as the other stages together.
        """
        climbing = [s for s in self.stages if s.name.startswith(_CLIMBING)]
        return (climbing or self.stages)[-1]

    def made_on(self, stage: Stage, model: Any) -> Hashable:
        """Return the part of the evaluated model that the images depend on, None for all of it."""
        return None if self.surrogate else stage.made_on(model)

    def words(self, stage: Stage) -> str:
        """Describe one stage for the progress bar."""
        name = self.name if len(self.stages) == 1 else f"{self.name} ({stage.name})"
        return f"{name} at {255 * self.eps:.4g}/255"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that reproduce the attack."""
        if len(self.stages) == 1:
            return self.stages[0].settings
        return {"parts": [{"attack": stage.name, **stage.settings} for stage in self.stages]}


def plan_attacks(
    attacks: str | Sequence[str],
    eps: Fraction | Sequence[Fraction],
    how: How | None = None,
    surrogates: Sequence[str] = (),
) -> list[Planned]:
    """Plan each attack at each radius; ``clean`` is not included.

    Raises:
        ValueError: unknown attack or surrogate (the message suggests the nearest names), radius out
            of range, no attack or no radius.
    """
    names = split_names(attacks)
    for name in names:
        if len(name) > _LONGEST:
            raise ValueError(f"attacks must have short names, got {shown(name)}")
    if not names:
        raise ValueError("attacks must not be empty")
    radii = list(dict.fromkeys(parse_fraction(e, "eps", zero=True) for e in split_radii(eps)))
    if not radii:
        raise ValueError("eps must not be empty")
    plans = []
    for name in names:
        if name == "clean":
            continue
        if name.startswith(("feature", "tpgd")) and 0.0 in radii:  # no gradient at the image
            raise ValueError(f"eps must be above 0 for {name!r}")
        plans += [plan(name, radius, how or How(), surrogates) for radius in radii]
    return plans


def split_names(attacks: str | Sequence[str]) -> list[str]:
    """Return the attack names without duplicates; a string is split at commas."""
    if not isinstance(attacks, (str, Sequence)):
        raise TypeError(f"attacks must be a name or a list of names, got {shown(attacks)}")
    names = attacks.split(",") if isinstance(attacks, str) else attacks
    return list(dict.fromkeys(check_text(name, "attacks").strip() for name in names))


def split_radii(eps: Fraction | Sequence[Fraction]) -> list[Fraction]:
    """Return the radii as given; a string is split at commas."""
    if isinstance(eps, bytes):
        raise TypeError(f'eps must be a number or a string like "4/255", got {shown(eps)}')
    if isinstance(eps, str):
        return [part.strip() for part in eps.split(",")]
    return list(eps) if isinstance(eps, Sequence) else [eps]


def plan(name: str, eps: float, how: How, surrogates: Sequence[str] = ()) -> Planned:
    """Plan the attack ``name`` at one radius.

    - ``pgd-N``: N steps of size eps/4 on cross-entropy, one random start; ``cw-N``: on the margin.
      ``pgd-N:ALPHA`` and ``cw-N:ALPHA`` have another step size, such as ``pgd-100:1/255``.
    - ``apgd-ce``, ``apgd-dlr``, ``apgd-t`` (9 targets): 100 steps, or N with the suffix ``-N``.
    - ``fab-t`` (9 targets) and ``square`` (5,000 queries); ``-N`` likewise.
    - ``autoattack``: AutoAttack's four standard attacks, in sequence.
    - ``feature-pgd-N``: AdvPT's attack on the image encoder, N steps of size 1.25 eps/N.
    - ``tpgd-N``: N steps of size eps/4 on the divergence from the clean prediction.
    - ``mi-fgsm-N``, ``di-fgsm-N``, ``ti-fgsm-N``: N steps of size eps/N, as in their papers.
    - ``NAME`` or ``NAME-N``: an attack that another package offers as ``fastprompt.attacks``.
    - any of these with the suffix ``@NAME``: crafted on that surrogate.
    """
    own, made_elsewhere, surrogate = name.partition("@")
    if made_elsewhere and surrogate not in surrogates:
        raise unknown(
            "surrogate", surrogate, surrogates or ["none, since surrogates was not passed"]
        )
    path = "adaptive"
    if own.startswith("square"):
        path = "black-box"
    elif own.startswith("feature-pgd"):
        path = "transfer:image-encoder"
    elif other := _other(own):
        path = other.path
    if surrogate:
        path = f"transfer:{surrogate}"
        how = replace(how, stop=False)  # fooling the surrogate must not stop the attack
    if alone := how.alone and own.startswith(_FIXED_STEPS):
        how = replace(how, stop=False)
    names = tuple(STANDARD) if own == "autoattack" else (own,)
    return Planned(name, path, eps, tuple(_stage(each, eps, how) for each in names), alone)


def _other(name: str) -> other_attacks.OtherAttack | None:
    """Return the attack of another package; None for one of our own or an unknown one."""
    if name == "autoattack" or _NAME.fullmatch(name):
        return None
    return other_attacks.find_attack(name, _OWN)


def _stage(name: str, eps: float, how: How) -> Stage:
    found = _NAME.fullmatch(name)
    if other := _other(name):
        steps = check_count(other.steps, "attacks: steps", most=MOST_STEPS)
        settings = {"steps": steps, **_counts(how), "seed": how.seed, "package": other.origin}
        inside = _run(other.make, eps, steps, how, samples=how.samples, stop=how.stop)

        def checked(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
            result = inside(model, images, labels, indices)
            other_attacks.check_ball(name, result.images, images, eps)
            return result

        return Stage(name, settings, checked)
    if not found or not (found["steps"] or found["kind"] in _STEPS):
        others = other_attacks.names(_OWN)
        raise unknown("attack", name, [*KNOWN, *(f"{kind}-N" for kind in _WITH_STEPS), *others])
    kind = found["kind"]
    steps = check_count(int(found["steps"] or _STEPS[kind]), "attacks: steps", most=MOST_STEPS)
    if found["alpha"] is None:
        settings, run = _MAKE[kind](kind, eps, steps, how)
    elif kind in ("pgd", "cw"):
        settings, run = _pgd(
            kind, eps, steps, how, parse_fraction(found["alpha"], "attacks: alpha")
        )
    else:
        raise ValueError(f"attacks: only pgd-N and cw-N take a step size, got {shown(name)}")
    settings["seed"] = how.seed
    if kind == "feature-pgd":
        return Stage(name, settings, run, _encoder, _plain)
    return Stage(name, settings, run)


Made = tuple[dict[str, Any], Run]


def _counts(how: How, best: str = "last iterate") -> dict[str, Any]:
    counted = "any iterate" if how.stop else best
    return {"counts": counted, "samples": how.samples}


def _run(make: Callable[..., Attack], eps: float, steps: int, how: How, **options: Any) -> Run:
    """Return a function that builds the attack with ``make`` and runs it."""

    def run(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        attack = make(model, eps, steps, batch=how.batch, seed=how.seed, **options)
        return attack.run(images, labels, indices=indices)

    return run


def _pgd(kind: str, eps: float, steps: int, how: How, alpha: float | None = None) -> Made:
    alpha = alpha or eps / 4 or 1 / 255
    settings = {
        "steps": steps,
        "alpha": alpha,
        "random_start": True,
        "restarts": 1,
        "loss": "cross-entropy" if kind == "pgd" else "margin",
        **_counts(how),
    }
    loss = cross_entropy if kind == "pgd" else margin

    def make(model: Any, eps: float, steps: int, **options: Any) -> Attack:
        return PGD(model, eps, alpha, steps, loss=loss, **options)

    return settings, _run(make, eps, steps, how, samples=how.samples, stop=how.stop)


def _tpgd(kind: str, eps: float, steps: int, how: How) -> Made:
    alpha = eps / 4
    settings = {
        "steps": steps,
        "alpha": alpha,
        "start": "N(0, 0.001)",
        "restarts": 1,
        "loss": "KL to the clean prediction",
        **_counts(how),
    }

    def make(model: Any, eps: float, steps: int, **options: Any) -> Attack:
        return TPGD(model, eps, alpha, steps, **options)

    return settings, _run(make, eps, steps, how, samples=how.samples, stop=how.stop)


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
        **_counts(how),
    }
    if kind == "di-fgsm":
        settings |= {"resize_rate": own.resize_rate, "diversity_prob": own.diversity_prob}
    if own.kernel is not None:
        settings["kernel"] = f"Gaussian, {len(own.kernel)} pixels"
    return settings, _run(make, eps, steps, how, samples=how.samples, stop=how.stop)


def _no_model(images: Tensor) -> Tensor:
    raise AssertionError("the attack is built for its settings alone")


def _apgd_dlr(model: Any, eps: float, steps: int, **options: Any) -> Attack:
    return APGD(model, eps, steps, loss="dlr", **options)


def _apgd(kind: str, eps: float, steps: int, how: How) -> Made:
    loss = {"apgd-ce": "ce", "apgd-dlr": "dlr", "apgd-t": "targeted-dlr"}[kind]
    best = "highest loss" + (", then largest margin" if kind == "apgd-t" else "")
    settings = {"steps": steps, "loss": loss, "restarts": 1, **_counts(how, best)}
    if kind == "apgd-t":
        settings["targets"] = TARGETS
    make = STANDARD[kind].make if kind in STANDARD else _apgd_dlr
    return settings, _run(make, eps, steps, how, samples=how.samples, stop=how.stop)


def _fab(kind: str, eps: float, steps: int, how: How) -> Made:
    settings = {"steps": steps, "targets": TARGETS, "restarts": 1}
    return settings, _run(STANDARD[kind].make, eps, steps, how)


def _square(kind: str, eps: float, queries: int, how: How) -> Made:
    settings = {"queries": queries, "loss": "margin", "restarts": 1}
    return settings, _run(STANDARD[kind].make, eps, queries, how)


def _blind(model: Any) -> bool:
    return not getattr(model, "has_visual_prompts", True)


def _plain(model: Any) -> bool:
    """Whether the feature attack uses the classifier's own encoder, which its twin converts."""
    return _blind(model) and type(model) is CLIPClassifier


def _encoder(model: Any) -> Hashable:
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


_MAKE: Mapping[str, Callable[[str, float, int, How], Made]] = {
    "pgd": _pgd,
    "cw": _pgd,
    "apgd-ce": _apgd,
    "apgd-dlr": _apgd,
    "apgd-t": _apgd,
    "fab-t": _fab,
    "square": _square,
    "feature-pgd": _feature,
    "tpgd": _tpgd,
    **dict.fromkeys(_TRANSFER, _transfer),
}
_OWN = ("clean", "autoattack", "apgd", *_MAKE)
