"""Attacks of other packages, by name."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._utils import plugins
from .._utils.checks import shown
from ..attacks.base import Attack

_ROUNDING = 1e-7  # by which rounding may exceed the radius
_PATHS = ("adaptive", "black-box")


@dataclass(frozen=True)
class OtherAttack:
    """An attack of another package.

    Attributes:
        steps: number of steps, from the name or by default.
        make: builds the attack, as `Attack`: ``make(model, eps, steps, batch=, seed=, samples=,
            stop=)``.
        path: ``"adaptive"``, or ``"black-box"`` if it uses the model's logits only.
        origin: the package and its version.
    """

    steps: int
    make: Callable[..., Attack]
    path: str
    origin: str


def names(own: Sequence[str]) -> list[str]:
    """Return the names of the attacks of other packages."""
    found = plugins.plugins(plugins.ATTACKS, ())
    for name in list(found):
        # an evaluation tells our attacks by the beginnings of their names
        if begins := [kind for kind in own if name.startswith(kind)]:
            entry = found.pop(name)
            plugins.warn(
                f"{plugins.titled(entry)} is ignored: {begins[0]!r} is an attack of fastprompt; "
                "rename it"
            )
    return list(found)


def find_attack(text: str, own: Sequence[str]) -> OtherAttack | None:
    """Return the attack that ``NAME`` or ``NAME-STEPS`` names; None if no package offers it.

    Raises:
        RuntimeError: the package cannot be imported, or offers something else.
        ValueError: the attack has no default number of steps, and ``text`` has none.
    """
    known = names(own)
    given = re.fullmatch(r"(.+)-([1-9][0-9]*)", text)
    if text in known:
        name, steps = text, None
    elif given and given[1] in known:
        name, steps = given[1], int(given[2])
    else:
        return None
    entry = plugins.plugins(plugins.ATTACKS, ())[name]
    make, title = plugins.load(entry), plugins.titled(entry)
    if not callable(make):
        raise RuntimeError(f"{title} must be a subclass of Attack or a function, got {make!r}")
    if steps is None:
        parameter = inspect.signature(make).parameters.get("steps")
        steps = None if parameter is None else parameter.default
        if not isinstance(steps, int):
            raise ValueError(f"attacks: {text!r} needs a number of steps, such as {text}-10")
    path = getattr(make, "path", _PATHS[0])
    if path not in _PATHS:
        raise RuntimeError(f"{title} must have a path of {_PATHS}, got {path!r}")
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    return OtherAttack(steps, _checked(make, title), path, origin)


def _checked(make: Callable[..., Any], title: str) -> Callable[..., Attack]:
    def build(*arguments: Any, **options: Any) -> Attack:
        attack = make(*arguments, **options)
        if not isinstance(attack, Attack):
            raise RuntimeError(f"{title} must make an Attack, got {shown(attack)}")
        return attack

    return build


def check_ball(name: str, adv: Tensor, images: Tensor, eps: float) -> None:
    """Raise RuntimeError unless adversarial images are within the radius and in [0, 1]."""
    far = float((adv - images).abs().max()) if len(adv) else 0.0
    inside = bool(((adv >= 0) & (adv <= 1)).all())
    if not inside or not far <= eps + _ROUNDING:
        what = f"images at a distance of {far:.6g}" if inside else "pixels outside [0, 1]"
        raise RuntimeError(f"attacks: {name} of another package returns {what}, eps is {eps:.6g}")
