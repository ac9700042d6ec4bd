"""Attack surviving images again: a correct robust accuracy is reproducible."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attacks.losses import cross_entropy, margin
from ...data.dataset import evenly
from .sample import SIGMAS, Sample
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
        attacked: positions of the images that were attacked: those classified correctly when clean.
    """

    eps: float
    attack: str
    kind: str
    steps: int
    standing: Sequence[int]
    attacked: Sequence[int] = ()


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Return a claim for each radius above 0 with a white-box attack, largest radius first."""
    white = [row for row in rows if row["path"] == "adaptive" and row["eps"] > 0]
    clean = next((row["flags"] for row in rows if row["attack"] == "clean"), "")
    attacked = [place for place, flag in enumerate(clean) if flag == _STANDS]
    found = []
    for eps in sorted({row["eps"] for row in white}, reverse=True):
        here = [row for row in white if row["eps"] == eps]
        climbs = [(row["attack"], *_kind_and_steps(row["attack"])) for row in here]
        climbs = [climb for climb in climbs if climb[1] in _CLIMBS]
        flags = zip(*(row["flags"] for row in here), strict=True)
        standing = [place for place, own in enumerate(flags) if set(own) == {_STANDS}]
        if climbs:
            found.append(Claim(eps, *max(climbs, key=lambda climb: climb[2]), standing, attacked))
    return found


def _kind_and_steps(attack: str) -> tuple[str, int]:
    kind, _, steps = attack.partition("@")[0].rpartition("-")
    return (kind, int(steps)) if steps.isdigit() else (attack.partition("@")[0], 100)


def check_claims(sample: Sample, claimed: Sequence[Claim], read: Read) -> list[Verdict]:
    """Attack surviving images again with the same steps, and with those of another loss.

    The rows were computed before the checks and in larger batches: a model that behaved differently
    then would pass every other check. One pass of a random model decided which images survived, so
    that some of them fall by chance: its attacked images are attacked again whether they survived
    or not, and the numbers of survivors are compared.
    """
    claimed = [claim for claim in claimed if claim.standing]
    if not claimed:
        why = "no image survives the white-box attacks"
        return [Verdict(name, "skipped", why) for name in ("attacked again", "another loss")]
    attack = _attack if sample.noise == "none" else _attack_random
    again, other = zip(*(attack(sample, claim, read) for claim in claimed), strict=True)
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
    fell: float
    of: float
    chance: float = 0.0  # allowance for the outcomes of single passes of a random model

    @property
    def radius(self) -> str:
        return f"{255 * self.claim.eps:g}/255"


def _survivals(
    sample: Sample, claim: Claim, read: Read, places: Sequence[int]
) -> tuple[Sample, Tensor, Tensor]:
    """Attack images with the claim's loss and with the other; return survival ``[B]`` of both."""
    indices, images, labels = read(places)
    own = replace(
        sample, images=images, labels=labels, indices=indices, eps=claim.eps, known=sample.noise
    )
    losses = [cross_entropy, margin]
    if claim.kind not in _ON_CROSS_ENTROPY:
        losses.reverse()
    steps = min(claim.steps, _STEPS)
    same, other = (own.survival(own.pgd(own.eps, steps, loss=loss)) for loss in losses)
    return own, same, other


def _attack(sample: Sample, claim: Claim, read: Read) -> tuple[_Fell, _Fell]:
    """Attack surviving images; of the other loss, count the images that only it fools."""
    places = [claim.standing[i] for i in evenly(_IMAGES, len(claim.standing))]
    _, same, other = _survivals(sample, claim, read, places)
    n = len(places)
    only = same * (1 - other)
    return _Fell(claim, n - float(same.sum()), n), _Fell(claim, float(only.sum()), n)


def _attack_random(sample: Sample, claim: Claim, read: Read) -> tuple[_Fell, _Fell]:
    """Attack the images that were attacked, and compare the numbers of survivors."""
    # a single pass decided each outcome, so that more images are needed
    places = [claim.attacked[i] for i in evenly(2 * _IMAGES, len(claim.attacked))]
    # a weaker attack raises no alarm
    few = replace(sample.with_few_samples, batch=min(sample.batch, _IMAGES))
    own, same, other = _survivals(few, claim, read, places)
    n, standing = len(places), set(claim.standing)
    before = torch.tensor([float(place in standing) for place in places]).to(same)
    # the variance of one pass's outcome is at most 1/4
    single = SIGMAS * 0.5 * math.sqrt(n)
    return (
        _Fell(claim, float((before - same).sum()), float(before.sum()), single),
        _Fell(claim, float((same - other).sum()), float(same.sum()), own.beyond(same - other)),
    )


def _verdict(check: str, found: Sequence[_Fell], luck: tuple[int, float], why: str) -> Verdict:
    reason = ""
    for at in found:
        if at.fell > max(luck[0], luck[1] * at.of) + at.chance:
            reason = (
                f"{at.fell:.3g} of {at.of:.3g} images reported as robust under {at.claim.attack} "
                f"at {at.radius} are fooled {why}"
            )
            break
    figures = {at.radius: f"{at.fell:.3g} of {at.of:.3g} fell" for at in found}
    return Verdict.of(check, reason, **figures)
