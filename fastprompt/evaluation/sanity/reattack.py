"""What stands is attacked once more: a robust accuracy that is true can be had again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...attacks.losses import cross_entropy, margin
from ..sampling import evenly
from .sample import Sample
from .verdict import Verdict

Read = Callable[[Sequence[int]], tuple[Tensor, Tensor, Tensor]]
_STANDS = "1"
_IMAGES, _STEPS = 12, 10  # for each radius: the first steps of the attack fell most
# how many may fall, and which share of them
_LUCK = (1, 0.1)  # passes of another size round otherwise, and a step's sign turns
_LOSSES_DIFFER = (3, 0.6)  # honest prompts: up to 5 of 12 (NAP), and images differ
# FAB's steps look for the nearest image, not for one within the radius
_CLIMBS = {"pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "autoattack"}
_ON_CROSS_ENTROPY = {"pgd", "apgd-ce", "autoattack"}


@dataclass(frozen=True)
class Claim:
    """What the rows say of one radius.

    Attributes:
        eps: the radius.
        attack: the white-box attack that took most steps.
        kind, steps: what it is, and how many they were.
        standing: places of the images that stand under every white-box attack.
    """

    eps: float
    attack: str
    kind: str
    steps: int
    standing: Sequence[int]


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of each radius above 0 that has a white-box attack, the largest first."""
    white = [row for row in rows if row["path"] == "adaptive" and row["eps"] > 0]
    found = []
    for eps in sorted({row["eps"] for row in white}, reverse=True):
        here = [row for row in white if row["eps"] == eps]
        climbs = [(row["attack"], *_kind_and_steps(row["attack"])) for row in here]
        climbs = [climb for climb in climbs if climb[1] in _CLIMBS]
        flags = zip(*(row["flags"] for row in here), strict=True)
        standing = [place for place, own in enumerate(flags) if set(own) == {_STANDS}]
        if climbs:
            found.append(Claim(eps, *max(climbs, key=lambda climb: climb[2]), standing))
    return found


def _kind_and_steps(attack: str) -> tuple[str, int]:
    kind, _, steps = attack.partition("@")[0].rpartition("-")
    return (kind, int(steps)) if steps.isdigit() else (attack.partition("@")[0], 100)


def check_claims(sample: Sample, claimed: Sequence[Claim], read: Read) -> list[Verdict]:
    """Images that stood stand again under the same steps, and under those of another loss.

    The rows were made before the model was looked at, and in larger batches: one that was another
    then would pass every other check.
    """
    claimed = [claim for claim in claimed if claim.standing]
    why = ""
    if sample.randomized:
        why = "the model is random"
    elif not claimed:
        why = "no image stands under an attack that sees the model"
    if why:
        return [Verdict(name, "skipped", why) for name in ("attacked again", "another loss")]
    again, other = zip(*(_attack(sample, claim, read) for claim in claimed), strict=True)
    return [
        _verdict(
            "attacked again",
            again,
            _LUCK,
            "when they are attacked so again: the model was another when it was judged, or is "
            "another in larger batches",
        ),
        _verdict(
            "another loss",
            other,
            _LOSSES_DIFFER,
            "to as many steps on the other of margin and cross-entropy: the loss has lost its "
            "direction. Attack with cw, apgd-dlr or autoattack",
        ),
    ]


@dataclass(frozen=True)
class _Fell:
    claim: Claim
    fell: int
    of: int

    @property
    def radius(self) -> str:
        return f"{255 * self.claim.eps:g}/255"


def _attack(sample: Sample, claim: Claim, read: Read) -> tuple[_Fell, _Fell]:
    """By the loss that it was, and by the other one alone."""
    places = [claim.standing[i] for i in evenly(_IMAGES, len(claim.standing))]
    indices, images, labels = read(places)
    own = replace(sample, images=images, labels=labels, indices=indices, eps=claim.eps)
    losses = [cross_entropy, margin]
    if claim.kind not in _ON_CROSS_ENTROPY:
        losses.reverse()
    same, other = (
        own.stands(own.pgd(own.eps, min(claim.steps, _STEPS), loss=loss)) for loss in losses
    )
    n = len(places)
    return _Fell(claim, n - int(same.sum()), n), _Fell(claim, int((same & ~other).sum()), n)


def _verdict(check: str, found: Sequence[_Fell], luck: tuple[int, float], why: str) -> Verdict:
    reason = ""
    for at in found:
        if at.fell > max(luck[0], luck[1] * at.of):
            reason = (
                f"{at.fell} of {at.of} images that are said to stand under {at.claim.attack} at "
                f"{at.radius} fall {why}"
            )
            break
    return Verdict.of(check, reason, **{at.radius: f"{at.fell} of {at.of} fell" for at in found})
