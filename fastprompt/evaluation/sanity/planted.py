"""A check that plants adversarial examples and tests whether the attack finds them.

Zimmermann et al., "Increasing confidence in adversarial robustness evaluations", NeurIPS 2022: fit
a linear read-out of the model's logits that separates an image and points near it from one corner
of its ball. That corner is then an adversarial example of the two-class model, and an attack that
finds none is too weak for this model, whatever robust accuracy it reports.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.dtypes import at_least_float32
from ..._utils.types import Model
from ...attacks import PGD
from ...attacks.ascent import evaluating
from ...attacks.losses import margin
from ...data.dataset import evenly
from .sample import Sample
from .verdict import Verdict

_IMAGES = 8  # number of images; each needs one forward pass per point
_NEAR, _FAR = 24, 6  # points near each image; corners, of which the best separated one is used
_INNER = 0.8  # distance of the near points, relative to the radius
_APART = 1e-3  # smaller gaps would vanish in the precision of the evaluation
# random gradients find at most a half, and that of a JPEG with smooth rounding not all at 1/255
_MISSED = (2, 0.4)  # tolerated number and share of the planted examples
_TRIES = ((10, 1), (50, 2))  # steps and restarts; the first finds nearly all


class _ReadOut(nn.Module):
    """A two-class linear read-out of the model's logits, one for each image of a batch."""

    def __init__(self, model: Model, weight: Tensor, bias: Tensor, center: Tensor) -> None:
        super().__init__()
        self.model = model
        self.weight, self.bias, self.center = weight, bias, center

    def forward(self, images: Tensor) -> Tensor:
        logits = at_least_float32(self.model(images)) - self.center
        score = (logits * self.weight).sum(dim=1) + self.bias
        return torch.stack([-score, score], dim=1)

    def of(self, rows: Tensor) -> "_ReadOut":
        """Select the read-outs of some images."""
        return _ReadOut(self.model, self.weight[rows], self.bias[rows], self.center[rows])


def planted(sample: Sample) -> Verdict:
    """Check that PGD finds planted adversarial examples."""
    if sample.noise == "free":
        why = "the model's random numbers cannot be fixed; the measured gradient is its check"
        return Verdict("planted example", "skipped", why)
    if not sample.eps:
        return Verdict("planted example", "skipped", "the radius is 0")
    sample = sample.of(evenly(_IMAGES, len(sample))).fixed(7)
    read_out, there = _plant(sample)
    n = int(there.sum())
    if not n:
        return Verdict(
            "planted example",
            "skipped",
            "no read-out separates a corner of the ball from its inside: the logits hardly change",
        )
    found = torch.zeros_like(there)
    for steps, restarts in _TRIES:
        left = (there & ~found).nonzero().flatten()
        if sample.draw is not None:
            # fixed random numbers are those of the whole batch
            left = torch.arange(len(there), device=there.device) if len(left) else left
        if len(left):
            found[left] |= _attacked(sample.of(left.tolist()), read_out.of(left), steps, restarts)
    hits = int((found & there).sum())
    share = hits / n
    chance = _by_chance(sample, read_out, there)
    reason = (
        f"of {n} planted adversarial examples, the attack found only {share:.0%}: its gradients do "
        "not lead to them"
        if n - hits > max(_MISSED[0], _MISSED[1] * n)
        else ""
    )
    return Verdict.of("planted example", reason, planted=n, found=share, by_chance=chance)


def _attacked(sample: Sample, read_out: _ReadOut, steps: int, restarts: int) -> Tensor:
    """Return for which images PGD finds the planted example, bool ``[B]``."""
    options: dict[str, Any] = {"restarts": restarts, "seed": sample.seed}
    attack = PGD(read_out, sample.eps, sample.eps / 4, steps, loss=margin, **options)
    zeros = torch.zeros_like(sample.labels)
    success = attack.run(sample.images, zeros, indices=sample.indices).success
    assert success is not None
    return success


def _corner(sample: Sample, part: float, draw: int) -> Tensor:
    """Move every pixel by ``part`` of the radius, with random signs."""
    generator = torch.Generator().manual_seed(sample.seed * 1009 + draw)
    signs = torch.randint(0, 2, sample.images.shape[1:], generator=generator) * 2.0 - 1
    return (sample.images + part * sample.eps * signs.to(sample.images)).clamp(0, 1)


def _plant(sample: Sample) -> tuple[_ReadOut, Tensor]:
    """Fit the read-outs; return them and which images have one, bool ``[B]``."""
    near = [sample.images, *(_corner(sample, _INNER, draw) for draw in range(_NEAR))]
    far = [_corner(sample, 1.0, _NEAR + draw) for draw in range(_FAR)]
    inside, outside = (torch.stack([sample.logits(x) for x in xs], 1) for xs in (near, far))
    best = [_fit(inside.double(), corner[:, None].double()) for corner in outside.unbind(1)]
    gap, pick = torch.stack([fit.gap for fit in best]).max(dim=0)
    image = torch.arange(len(pick), device=pick.device)
    weight, bias = (
        torch.stack([getattr(fit, name) for fit in best])[pick, image].to(inside.dtype)
        for name in ("weight", "bias")
    )
    center = inside.mean(dim=1)
    return _ReadOut(sample.call, weight, bias, center), gap > 0


@dataclass(frozen=True)
class _Fit:
    weight: Tensor  # [B, C]
    bias: Tensor  # [B]
    gap: Tensor  # [B], gap between the sides relative to the largest score; > 0 if separable


def _fit(inside: Tensor, outside: Tensor) -> _Fit:
    """Fit each image's centered logits to -1 inside and +1 outside by ridge regression."""
    n = inside.shape[1]
    moved = torch.cat([inside, outside], dim=1) - inside.mean(dim=1, keepdim=True)  # [B, P, C]
    scale = moved.norm(dim=2).amax(dim=1).clamp_min(1e-30)[:, None, None]
    unit = moved / scale
    wanted = torch.ones(moved.shape[:2], dtype=moved.dtype, device=moved.device)
    wanted[:, :n] = -1
    ridge = 1e-6 * torch.eye(moved.shape[1], dtype=moved.dtype, device=moved.device)
    off = (wanted - wanted.mean(dim=1, keepdim=True)).unsqueeze(2)
    dual = torch.linalg.solve(unit @ unit.transpose(1, 2) + ridge, off)
    weight = (unit * dual).sum(dim=1) / scale[:, 0]
    score = (moved * weight[:, None]).sum(dim=2)
    # put the boundary midway between the two sides
    low, high = score[:, :n].amax(dim=1), score[:, n:].amin(dim=1)
    gap = (high - low) / score.abs().amax(dim=1).clamp_min(1e-30)
    return _Fit(weight, -(low + high) / 2, torch.where(gap.isfinite(), gap, -1.0) - _APART)


def _by_chance(sample: Sample, read_out: _ReadOut, there: Tensor) -> float:
    """Return the share of planted examples that random corners find; near 1, the check is weak."""
    with torch.no_grad(), evaluating(sample.model):
        hits = [read_out(_corner(sample, 1.0, 100 + d)).argmax(1) == 1 for d in range(4)]
    return float((torch.stack(hits).any(0) & there).sum()) / max(1, int(there.sum()))
