"""Attack surviving images again: a correct robust accuracy is reproducible."""

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
_IMAGES, _STEPS = 12, 10  # for each radius; the first steps fool most images
# tolerated number and share of fooled images
_LUCK = (1, 0.1)  # other batch sizes round differently, which can flip a step's sign
_LOSSES_DIFFER = (3, 0.6)  # honest prompts: up to 5 of 12 (NAP), depending on the images
# without FAB, whose steps minimize the distance instead of staying within the radius
_CLIMBS = {"pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "autoattack"}
_ON_CROSS_ENTROPY = {"pgd", "apgd-ce", "autoattack"}


@dataclass(frozen=True)
class Claim:
    """The robust images that the rows report at one radius.

    Attributes:
        eps: the radius.
        attack: the white-box attack with the most steps.
        kind, steps: its kind and number of steps.
        standing: positions of the images that survive every white-box attack.
    """

    eps: float
    attack: str
    kind: str
    steps: int
    standing: Sequence[int]


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Return a claim for each radius above 0 with a white-box attack, largest radius first."""
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
    """Attack surviving images again with the same steps, and with those of another loss.

    The rows were computed before the checks and in larger batches: a model that behaved differently
    then would pass every other check.
    """
    claimed = [claim for claim in claimed if claim.standing]
    why = ""
    if sample.randomized:
        why = "the model is random"
    elif not claimed:
        why = "no image survives the white-box attacks"
    if why:
        return [Verdict(name, "skipped", why) for name in ("attacked again", "another loss")]
    again, other = zip(*(_attack(sample, claim, read) for claim in claimed), strict=True)
    return [
        _verdict(
            "attacked again",
            again,
            _LUCK,
            "when attacked again: the model behaved differently during the evaluation, or behaves "
            "differently in larger batches",
        ),
        _verdict(
            "another loss",
            other,
            _LOSSES_DIFFER,
            "by as many steps on the other loss (margin or cross-entropy): the attack's loss gives "
            "no useful direction. Attack with cw, apgd-dlr or autoattack",
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
    """Attack with the claim's loss, then another; count images that only the second fools."""
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
                f"{at.fell} of {at.of} images reported as robust under {at.claim.attack} at "
                f"{at.radius} are fooled {why}"
            )
            break
    return Verdict.of(check, reason, **{at.radius: f"{at.fell} of {at.of} fell" for at in found})
