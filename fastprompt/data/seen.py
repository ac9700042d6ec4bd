"""What the bundled models of photographs have seen of a data set in their pre-training."""

from . import corruptions, photos

_CALTECH = "coop:Caltech101"


def seen_by(model: str, data: str) -> str:
    """Return what a model has seen of a data set, by their names; empty if that is not known."""
    if model not in photos.MODELS:
        return ""
    if data in (photos.NAME, *corruptions.NAMES):
        return f"{model} has seen these classes, but not these images, in its pre-training"
    if data == _CALTECH:
        return (
            f"{model} has seen these classes, and a part of the training images, in its "
            "pre-training, but not the test images"
        )
    return ""
