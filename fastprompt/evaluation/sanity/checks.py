"""The sanity checks in order, at quick and full depth, and how many images they use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .gradients import direction, gradient_health, temperature
from .outputs import attack_path, batch_split, finite, precision, repeatable
from .planted import planted
from .sample import Sample
from .slopes import measured_gradient, path_integral
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

    The checks may take ``share`` of the passes of the evaluation that they check (images in forward
    and backward passes). For a small evaluation they use fewer images, but never fewer than
    ``least``, and no check is left out.

    Attributes:
        images, least: largest and smallest number of images to check.
        share: passes of the checks, as a share of the evaluation's.
        passes: about the passes of all checks for each image.
        of_the_model: checks that use all these images.
        of_the_attack: checks that use only the correctly classified images.
    """

    images: int
    least: int
    share: float
    passes: int
    of_the_model: Sequence[Check]
    of_the_attack: Sequence[Check]

    def affords(self, passes: int, samples: int = 1) -> int:
        """Return the number of images to check after an evaluation of ``passes`` passes.

        A random model's gradients take ``samples`` passes, in the evaluation and in the checks.
        """
        return min(self.images, max(self.least, int(self.share * passes / (self.passes * samples))))


QUICK = Depth(
    16,
    8,
    0.25,
    250,
    (finite, repeatable, attack_path, batch_split, radius_zero),
    (
        *(gradient_health, temperature, direction, measured_gradient, path_integral),
        *(ball, unbounded, planted),
    ),
)
FULL = Depth(
    64,
    16,
    1.0,
    1500,
    (*QUICK.of_the_model, precision),
    (*QUICK.of_the_attack, more_is_stronger, leveled, other_losses, black_box),
)


def check_model(
    sample: Sample, depth: Depth, tell: Callable[[str], None] = lambda name: None
) -> list[Verdict]:
    """Run all checks of one depth; skip attack checks if no image is classified correctly.

    Args:
        tell: called with the name of each check before it runs.
    """

    def run(check: Check, on: Sample) -> Verdict:
        name = check.__name__.replace("_", " ")
        tell(name)
        if not len(on):
            return Verdict(name, "skipped", "no image is classified correctly")
        return check(on)

    found = [run(check, sample) for check in depth.of_the_model]
    right = sample.among_right
    return found + [run(check, right) for check in depth.of_the_attack]
