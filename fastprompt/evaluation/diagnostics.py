"""What the parts of a tuned classifier do: router weights by class, corrections of the refiners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.ascent import evaluating


def diagnose(
    classifier: Any, images: Tensor, adv: Tensor, labels: Tensor, names: Sequence[str]
) -> dict[str, Any]:
    """What a classifier of ours does on clean images and on attacked ones.

    Args:
        classifier: any; one without a router or refiners has nothing to tell.
        images, adv: ``[B, 3, H, W]``, the same images clean and attacked.
        labels: int64 ``[B]``.
        names: the classes.

    Returns:
        ``routing``: mean router weights of the images of each class, ``[C][K]``, None for a class
        without an image. ``refiners``: the size of each refiner's correction as a share of its
        input's, a mean over images and tokens.
    """
    found: dict[str, Any] = {}
    sides = {"clean": images, "adversarial": adv}
    if hasattr(getattr(classifier, "head", None), "weights"):
        routing = {side: _routing(classifier, x, labels, len(names)) for side, x in sides.items()}
        found["routing"] = {"classes": list(names), **routing}
    if getattr(classifier, "refiners", None) is not None:
        sizes = {side: _corrections(classifier, x) for side, x in sides.items()}
        # the first block has no refiner: prompts join before it
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
