"""Build the attacks of an evaluation from their names."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .._utils.checks import MOST_STEPS, Fraction, check_count, check_text, parse_fraction, shown
from .._utils.names import unknown
from ..attacks import AttackResult
from ..attacks.autoattack import STANDARD
from . import other_attacks
from .attack_kinds import KINDS, counts, encoder_of, pgd, runs, takes_twin
from .stages import How, Planned, Stage

KNOWN = (
    *("clean", "pgd-20", "pgd-100", "cw-100", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"),
    *("autoattack", "feature-pgd-40", "tpgd-20", "mi-fgsm-10", "di-fgsm-10", "ti-fgsm-10"),
)
_NAME = re.compile(
    r"(?P<kind>pgd|cw|apgd-ce|apgd-dlr|apgd-t|fab-t|square|feature-pgd|tpgd|mi-fgsm|di-fgsm|ti-fgsm)"
    r"(?:-(?P<steps>[1-9][0-9]*))?(?::(?P<alpha>[0-9./]+))?"
)
_LONGEST = 200  # characters of an attack's name, with that of its surrogate
# attacks with a fixed number of steps, whose last iterates published code scores
_WITH_STEPS = ("pgd", "cw", "feature-pgd", "tpgd", "mi-fgsm", "di-fgsm", "ti-fgsm")
_STEPS = {"apgd-dlr": 100} | {name: standard.steps for name, standard in STANDARD.items()}
_OWN = ("clean", "autoattack", "apgd", *KINDS)


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
    if alone := how.alone and has_last_iterates(own):
        how = replace(how, stop=False)
    names = tuple(STANDARD) if own == "autoattack" else (own,)
    return Planned(name, path, eps, tuple(_stage(each, eps, how) for each in names), alone)


def has_last_iterates(name: str) -> bool:
    """Return whether published scoring takes the accuracy on the attack's last iterates."""
    found = _NAME.fullmatch(name.partition("@")[0])
    return found is not None and found["kind"] in _WITH_STEPS


def _other(name: str) -> other_attacks.OtherAttack | None:
    """Return the attack of another package; None for one of our own or an unknown one."""
    if name == "autoattack" or _NAME.fullmatch(name):
        return None
    return other_attacks.find_attack(name, _OWN)


def _stage(name: str, eps: float, how: How) -> Stage:
    found = _NAME.fullmatch(name)
    if other := _other(name):
        steps = check_count(other.steps, "attacks: steps", most=MOST_STEPS)
        settings = {"steps": steps, **counts(how), "seed": how.seed, "package": other.origin}
        inside = runs(other.make, eps, steps, how, samples=how.samples, stop=how.stop)

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
        settings, run = KINDS[kind](kind, eps, steps, how)
    elif kind in ("pgd", "cw"):
        settings, run = pgd(kind, eps, steps, how, parse_fraction(found["alpha"], "attacks: alpha"))
    else:
        raise ValueError(f"attacks: only pgd-N and cw-N take a step size, got {shown(name)}")
    settings["seed"] = how.seed
    if kind == "feature-pgd":
        return Stage(name, settings, run, encoder_of, takes_twin)
    return Stage(name, settings, run)
