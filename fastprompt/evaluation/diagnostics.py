"""Diagnostics of a tuned classifier: router weights per class, and sizes of refiner corrections."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.ascent import evaluating


def diagnose(
    classifier: Any, images: Tensor, adv: Tensor, labels: Tensor, names: Sequence[str]
) -> dict[str, Any]:
    """Diagnose a tuned classifier on clean and adversarial images.

    Args:
        classifier: any classifier; without a router or refiners, the result is empty.
        images, adv: ``[B, C, H, W]``, clean images and their adversarial versions.
        labels: int64 ``[B]``.
        names: class names.

    Returns:
        ``routing``: mean router weights of the images of each class, ``[C][K]``, None for a class
        without images. ``refiners``: norm of each refiner's correction relative to the norm of its
        input, averaged over images and tokens.
    """
    found: dict[str, Any] = {}
    sides = {"clean": images, "adversarial": adv}
    if hasattr(getattr(classifier, "head", None), "weights"):
        routing = {side: _routing(classifier, x, labels, len(names)) for side, x in sides.items()}
        found["routing"] = {"classes": list(names), **routing}
    if getattr(classifier, "refiners", None) is not None:
        sizes = {side: _corrections(classifier, x) for side, x in sides.items()}
        # block 1 has no refiner: prompts are inserted before it
        layers = list(range(2, 2 + len(sizes["clean"])))
        found["refiners"] = {"layers": layers, **sizes}
    return found


@torch.no_grad()
def _routing(
    classifier: Any, images: Tensor, labels: Tensor, classes: int
) -> list[list[float] | None]:
    with evaluating(classifier):
        weights = classifier.routing_weights(images).double().cpu()
    labels = labels.cpu()
    return [
        weights[labels == c].mean(dim=0).tolist() if bool((labels == c).any()) else None
        for c in range(classes)
    ]


@torch.no_grad()
def _corrections(classifier: Any, images: Tensor) -> list[float]:
    sizes: dict[int, float] = {}

    def watch(layer: int) -> Any:
        def hook(_: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
            before, after = given[0].double(), out.double()
            share = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
            sizes[layer] = float(share.mean())

        return hook

    hooks = [r.register_forward_hook(watch(i)) for i, r in enumerate(classifier.refiners)]
    try:
        with evaluating(classifier):
            classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [sizes[layer] for layer in sorted(sizes)]
