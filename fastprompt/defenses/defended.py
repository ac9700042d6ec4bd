"""A classifier behind defenses."""

from typing import Any

from torch import Tensor, nn

from .._utils.types import Model


class Defended(nn.Module):
    """A classifier behind defenses: pixels to logits, all of it seen by an attack.

    Args:
        classifier: pixels ``[B, 3, H, W]`` in [0, 1] to logits; one that is defended already gets
            these defenses in front of its own.
        defenses: modules from images to images, the first is met first. One that is random says so
            by an attribute ``randomized = True``.

    Attributes:
        classifier: the one behind all defenses.
        defenses: all of them, in order.

    Raises:
        TypeError: a classifier that is not callable, a defense that is no module.
    """

    classifier: Model
    defenses: nn.ModuleList

    def __init__(self, classifier: Model, *defenses: nn.Module) -> None:
        super().__init__()
        if not callable(classifier) or isinstance(classifier, type):
            raise TypeError(f"classifier must take images, got {classifier!r}")
        for defense in defenses:
            if not isinstance(defense, nn.Module):
                raise TypeError(
                    f"defenses must be modules, got {defense!r}: make them, and pass a list as "
                    "Defended(classifier, *defenses)"
                )
        # all of them in one list: a report names them
        inner = classifier if isinstance(classifier, Defended) else None
        self.classifier = classifier if inner is None else inner.classifier
        self.defenses = nn.ModuleList([*defenses, *(inner.defenses if inner is not None else ())])

    @property
    def randomized(self) -> bool:
        """Whether two passes over the same images differ: attack the mean of several."""
        parts = (self.classifier, *self.defenses)
        return any(bool(getattr(part, "randomized", False)) for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]``, with a gradient in the pixels."""
        for defense in self.defenses:
            images = defense(images)
        return self.classifier(images)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # what the classifier says of itself. Not its clip, encode_image or logits: an attack
            # that took the encoder from here would go round the defenses, and seem adaptive
            if name not in ("classnames", "engine", "precision", "in_precision"):
                raise
        own = getattr(self.classifier, name)
        if name != "in_precision":
            return own
        return lambda precision: Defended(own(precision), *self.defenses)
