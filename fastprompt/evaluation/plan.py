"""The attacks of an evaluation, by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .._utils.checks import Fraction, parse_fraction
from .._utils.names import unknown
from ..attacks import APGD, PGD, AttackResult, FeaturePGD
from ..attacks.autoattack import STANDARD, TARGETS
from ..attacks.base import Attack
from ..attacks.fab_square import torchattacks
from ..attacks.losses import cross_entropy, margin

KNOWN = (
    *("clean", "pgd-20", "pgd-100", "cw-100", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"),
    *("autoattack", "feature-pgd-40"),
)
_NAME = re.compile(
    r"(?P<kind>pgd|cw|apgd-ce|apgd-dlr|apgd-t|fab-t|square|feature-pgd)(?:-(?P<steps>[1-9]\d*))?"
)
_STEPS = {"apgd-dlr": 100} | {name: standard.steps for name, standard in STANDARD.items()}


@dataclass(frozen=True)
class How:
    """How the attacks of an evaluation are run.

    Attributes:
        seed: of random starts and of squares.
        batch: images attacked at once.
        stop: an image that is fooled leaves its batch, and every iterate counts.
        samples: gradients averaged in each step; for a random model.
    """

    seed: int = 0
    batch: int = 128
    stop: bool = True
    samples: int = 1


Run = Callable[[Any, Tensor, Tensor, Tensor], AttackResult]


@dataclass(frozen=True)
class Stage:
    """One attack: its name, what it takes to run it again, and how to run it.

    ``run`` takes the model that is attacked, images, labels and the images' indices.
    """

    name: str
    settings: dict[str, Any]
    run: Run


@dataclass(frozen=True)
class Planned:
    """Attributes:

    name: as it was asked for.
    path: ``adaptive`` (through the model that is judged), ``black-box`` (its logits alone),
        ``transfer:image-encoder`` (blind to the prompts) or ``transfer:NAME`` (made on another).
    eps: radius in pixel units.
    stages: attacks, each on the images that those before it left standing.
    """

    name: str
    path: str
    eps: float
    stages: tuple[Stage, ...]

    @property
    def surrogate(self) -> str | None:
        """The model that it is made on, if that is not the one that is judged."""
        return self.path.removeprefix("transfer:") if "@" in self.name else None

    def words(self, stage: Stage) -> str:
        """One of its stages as a line of progress names it."""
        name = self.name if len(self.stages) == 1 else f"{self.name} ({stage.name})"
        return f"{name} at {255 * self.eps:.4g}/255"

    @property
    def settings(self) -> dict[str, Any]:
        """All that it takes to run it again."""
        if len(self.stages) == 1:
            return self.stages[0].settings
        return {"parts": [{"attack": stage.name, **stage.settings} for stage in self.stages]}


def plan_attacks(
    attacks: str | Sequence[str],
    eps: Fraction | Sequence[Fraction],
    how: How | None = None,
    surrogates: Sequence[str] = (),
) -> list[Planned]:
    """The attacks of an evaluation, each at each radius; ``clean`` is not among them.

    Raises:
        ValueError: an unknown attack or surrogate (the nearest are offered), a radius out of range,
            none at all.
        ModuleNotFoundError: FAB or Square without torchattacks.
    """
    names = split_names(attacks)
    if not names:
        raise ValueError("attacks must not be empty")
    radii = list(dict.fromkeys(parse_fraction(e, "eps", zero=True) for e in split_radii(eps)))
    if not radii:
        raise ValueError("eps must not be empty")
    plans = []
    for name in names:
        if name == "clean":
            continue
        if name.startswith("feature") and 0.0 in radii:
            raise ValueError(f"eps must be above 0 for {name!r}")
        plans += [plan(name, radius, how or How(), surrogates) for radius in radii]
    return plans


def split_names(attacks: str | Sequence[str]) -> list[str]:
    """The attacks' names, each once; a string holds them with commas between."""
    names = attacks.split(",") if isinstance(attacks, str) else attacks
    return list(dict.fromkeys(name.strip() for name in names))


def split_radii(eps: Fraction | Sequence[Fraction]) -> list[Fraction]:
    """Radii as they were given; a string holds them with commas between, as attacks' names."""
    if isinstance(eps, str):
        return [part.strip() for part in eps.split(",")]
    return list(eps) if isinstance(eps, Sequence) else [eps]


def plan(name: str, eps: float, how: How, surrogates: Sequence[str] = ()) -> Planned:
    """The attack called ``name`` at one radius.

    - ``pgd-N``: N steps of eps/4 on cross-entropy, one random start; ``cw-N``: on the margin.
    - ``apgd-ce``, ``apgd-dlr``, ``apgd-t`` (9 targets), ``-N`` for other than 100 steps.
    - ``fab-t`` (9 targets) and ``square`` (5,000 queries), from torchattacks; ``-N`` likewise.
    - ``autoattack``: the standard four of them, one after the other.
    - ``feature-pgd-N``: AdvPT's, on the image encoder, steps of 1.25 eps/N.
    - any of them with ``@NAME``: made on the surrogate of that name.
    """
    own, made_elsewhere, surrogate = name.partition("@")
    if made_elsewhere and surrogate not in surrogates:
        raise unknown("surrogate", surrogate, surrogates or ["none was given"])
    path = "adaptive"
    if own.startswith("square"):
        path = "black-box"
    elif own.startswith("feature"):
        path = "transfer:image-encoder"
    if surrogate:
        path = f"transfer:{surrogate}"
        how = replace(how, stop=False)  # what fools the surrogate is no end
    names = tuple(STANDARD) if own == "autoattack" else (own,)
    return Planned(name, path, eps, tuple(_stage(each, eps, how) for each in names))


def _stage(name: str, eps: float, how: How) -> Stage:
    found = _NAME.fullmatch(name)
    if not found or not (found["steps"] or found["kind"] in _STEPS):
        raise unknown("attack", name, [*KNOWN, "pgd-N", "cw-N", "feature-pgd-N"])
    kind = found["kind"]
    steps = int(found["steps"] or _STEPS[kind])
    settings, run = _MAKE[kind](kind, eps, steps, how)
    return Stage(name, {**settings, "seed": how.seed}, run)


Made = tuple[dict[str, Any], Run]


def _counts(how: How, best: str = "last iterate") -> dict[str, Any]:
    counted = "any iterate" if how.stop else best
    return {"counts": counted, "samples": how.samples}


def _run(make: Callable[..., Attack], eps: float, steps: int, how: How, **options: Any) -> Run:
    """Runs the attack that ``make`` makes of a model."""

    def run(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        attack = make(model, eps, steps, batch=how.batch, seed=how.seed, **options)
        return attack.run(images, labels, indices=indices)

    return run


def _pgd(kind: str, eps: float, steps: int, how: How) -> Made:
    alpha = eps / 4 if eps else 1 / 255
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
    torchattacks()  # if it is missing this is told now, not after hours
    settings = {"steps": steps, "targets": TARGETS, "restarts": 1, "from": "torchattacks"}
    return settings, _run(STANDARD[kind].make, eps, steps, how)


def _square(kind: str, eps: float, queries: int, how: How) -> Made:
    torchattacks()
    settings = {"queries": queries, "loss": "margin", "restarts": 1, "from": "torchattacks"}
    return settings, _run(STANDARD[kind].make, eps, queries, how)


def _feature(kind: str, eps: float, steps: int, how: How) -> Made:
    settings = {
        "steps": steps,
        "alpha": 1.25 * eps / steps,
        "start": "two-sided",
        "loss": "feature KL",
        "counts": "last iterate",
    }

    def run(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        # the classifier's own tower is the faster one, but no learned prompt may stand in it
        blind = not getattr(model, "has_visual_prompts", True)
        encode = model.encode_image if blind else model.clip.encode_image
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
}
