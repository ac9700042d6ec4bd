"""The sanity checks in order, at quick and full depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .gradients import direction, gradient_health, measured_gradient, temperature
from .outputs import attack_path, batch_split, finite, precision, repeatable
from .planted import planted
from .sample import Sample
from .strength import (
    ball,
    black_box,
    leveled,
    more_is_stronger,
    other_losses,
    radius_zero,
    unbounded,
)
from .verdict import Verdict

Check = Callable[[Sample], Verdict]


@dataclass(frozen=True)
class Depth:
    """A set of checks.

    Attributes:
        images: number of images to check.
        of_the_model: checks that use all these images.
        of_the_attack: checks that use only the correctly classified images.
    """

    images: int
    of_the_model: Sequence[Check]
    of_the_attack: Sequence[Check]


QUICK = Depth(
    16,
    (finite, repeatable, attack_path, batch_split, radius_zero),
    (gradient_health, temperature, direction, measured_gradient, ball, unbounded, planted),
)
FULL = Depth(
    64,
    (*QUICK.of_the_model, precision),
    (*QUICK.of_the_attack, more_is_stronger, leveled, other_losses, black_box),
)


def check_model(sample: Sample, depth: Depth) -> list[Verdict]:
    """Run all checks of one depth; skip attack checks if no image is classified correctly."""
    found = [check(sample) for check in depth.of_the_model]
    right = sample.among_right
    for check in depth.of_the_attack:
        if len(right):
            found.append(check(right))
        else:
            name = check.__name__.replace("_", " ")
            found.append(Verdict(name, "skipped", "no image is classified correctly"))
    return found
