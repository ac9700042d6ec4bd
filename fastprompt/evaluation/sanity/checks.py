"""The sanity checks in order, at quick and full depth, and how many images they use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .gradients import direction, gradient_health, temperature
from .outputs import attack_path, batch_split, finite, precision, repeatable
from .planted import planted
from .sample import FEW, Sample
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
        passes: about the passes of the checks for each image.
        averaged: about the passes for each image that a random model repeats, up to ``FEW`` times.
        of_the_model: checks that use all these images.
        of_the_attack: checks that use only the correctly classified images.
    """

    images: int
    least: int
    share: float
    passes: int
    averaged: int
    of_the_model: Sequence[Check]
    of_the_attack: Sequence[Check]

    def affords(self, passes: int, samples: int = 1) -> int:
        """Return the number of images to check after an evaluation of ``passes`` passes.

        The gradients of a random model are averages over ``samples`` passes.
        """
        each = self.passes + self.averaged * min(samples, FEW)
        return min(self.images, max(self.least, int(self.share * passes / each)))


QUICK = Depth(
    images=16,
    least=4,
    share=0.25,
    passes=150,
    averaged=0,
    of_the_model=(finite, repeatable, attack_path, batch_split, radius_zero),
    of_the_attack=(
        *(gradient_health, temperature, direction, measured_gradient, path_integral),
        *(ball, unbounded, planted),
    ),
)
FULL = Depth(
    images=64,
    least=16,
    share=1.0,
    passes=150,
    averaged=1100,
    of_the_model=(*QUICK.of_the_model, precision),
    of_the_attack=(*QUICK.of_the_attack, more_is_stronger, leveled, other_losses, black_box),
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
