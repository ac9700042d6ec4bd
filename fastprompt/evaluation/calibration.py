"""Calibration of probabilities: a temperature for the logits, and the error before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import check_labels
from .._utils.progress import Progress
from .._utils.types import Model
from ..attacks import PGD
from .sampling import Images
from .scoring import logits_of

BINS = 15
STEPS = 10  # of the PGD attack
PGD_NAME = f"pgd-{STEPS}"
LOWEST, HIGHEST = 0.01, 100.0  # temperatures
_HALVINGS = 60  # of an interval of log temperatures, which leave less than float64 resolves


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error in [0, 1] (Naeini et al., AAAI 2015).

    It is the mean absolute difference of confidence and accuracy over ``bins`` bins of equal width,
    weighted by their numbers of images, as torchmetrics' ``calibration_error`` with ``norm="l1"``.

    Args:
        probabilities: ``[N, C]``.
        labels: int64 ``[N]``.
    """
    confidence, predicted = probabilities.double().max(dim=-1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    # a confidence of 1 has a bin of its own
    index = torch.bucketize(confidence, edges, right=True) - 1
    sums = torch.zeros(bins + 1, dtype=torch.float64, device=confidence.device)
    # the difference of the means in a bin, times its share of the images
    return float(sums.index_add(0, index, confidence - right).abs().sum() / len(labels))


def nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Return the mean negative log likelihood of the labels, computed in float64."""
    return float(F.cross_entropy(logits.double() / temperature, labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimizes the negative log likelihood of ``logits / T``.

    Guo et al., ICML 2017, section 4.2. The likelihood is convex in ``1 / T``: the sign of its
    derivative there is searched by bisection, in float64.

    Args:
        logits: ``[N, C]``.
        labels: int64 ``[N]``.

    Returns:
        T from 0.01 to 100; one of these if the likelihood grows beyond, as where every image is
        classified correctly.

    Raises:
        ValueError: the logits are not finite, or there are none.
    """
    if not len(logits) or not bool(logits.isfinite().all()):
        found = "has NaN or infinite logits" if len(logits) else "has no images"
        raise ValueError(f"calibrate: the model {found} to fit a temperature on")
    check_labels(labels, len(logits), logits.shape[1], "labels of calibrate")
    wide = logits.double()
    # shifted, so that the sums do not lose digits
    wide = wide - wide.max(dim=-1, keepdim=True).values
    own = wide.gather(1, labels[:, None])[:, 0].mean()
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shares = (wide / math.exp(middle)).softmax(dim=-1)
        # the derivative of the loss in 1 / T; above 0, the logits are too far apart
        if float((shares * wide).sum(dim=-1).mean() - own) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def calibrate(
    model: Model, val: Images, test: Images, *, batch: int, seed: int, eps: float, bar: Progress
) -> dict[str, Any]:
    """Fit a temperature on validation images; measure the error on test images.

    Args:
        val, test: the images.
        eps: radius of the attack on the test images, PGD with 10 steps; 0 for none.

    Returns:
        ``temperature``; ``n`` and ``nll`` (before and after) of the validation images; ``rows``
        with ``attack``, ``eps``, ``n`` and the calibration error ``before`` and ``after``. All
        test images are attacked, also those that are misclassified when clean.
    """
    logits, labels = _logits(model, val, batch, bar)
    temperature = fit_temperature(logits, labels)
    attack = PGD(model, eps, eps / 4, STEPS, batch=batch, seed=seed) if eps else None
    rows = []
    for own in (None,) if attack is None else (None, attack):
        found, truth = _logits(model, test, batch, bar, own)
        before, after = (
            calibration_error((found / t).softmax(-1), truth) for t in (1.0, temperature)
        )
        about = {"attack": "clean", "eps": 0.0} if own is None else {"attack": PGD_NAME, "eps": eps}
        rows.append({**about, "n": len(truth), "before": before, "after": after})
    return {
        "temperature": temperature,
        "n": len(labels),
        "nll": {"before": nll(logits, labels), "after": nll(logits, labels, temperature)},
        "rows": rows,
    }


def _logits(
    model: Model, images: Images, batch: int, bar: Progress, attack: PGD | None = None
) -> tuple[Tensor, Tensor]:
    """Return logits in float64 and labels of all images, which ``attack`` perturbs."""
    logits, labels = [], []
    for indices, pixels, truth in images.read(range(len(images.rows)), batch):
        if attack is not None:
            pixels = attack.run(pixels, truth, indices=indices).images
        logits.append(logits_of(model, pixels, images.classes).double())
        labels.append(truth)
        bar.update(len(truth))
    return torch.cat(logits), torch.cat(labels)


def calibration_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a line per model for `Evaluation.calibration`."""
    lines = []
    for model, own in found.items():
        errors = [
            f"{_under(row)} {100 * row['before']:.1f} % to {100 * row['after']:.1f} %"
            for row in own["rows"]
        ]
        lines.append(
            f"{model}: temperature {own['temperature']:.4g} from {own['n']:,} validation images; "
            f"calibration error {', '.join(errors)}"
        )
    return lines


def _under(row: Mapping[str, Any]) -> str:
    return f"{row['attack']} at {255 * row['eps']:.3g}/255" if row["eps"] else str(row["attack"])
