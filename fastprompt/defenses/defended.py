"""A classifier with input defenses."""

from typing import Any

from torch import Tensor, nn

from .._utils.types import Model


class Defended(nn.Module):
    """A classifier with input defenses; an attack differentiates through both.

    Args:
        classifier: maps images ``[B, C, H, W]`` in [0, 1] to logits. If it is a `Defended`, the
            new defenses are applied before its own.
        defenses: modules from images to images, applied in the given order. A randomized one must
            have an attribute ``randomized = True``.

    Attributes:
        classifier: the undefended classifier.
        defenses: all defenses, in the order of application.

    Raises:
        TypeError: the classifier is not callable, or a defense is not a module.
    """

    classifier: Model
    defenses: nn.ModuleList

    def __init__(self, classifier: Model, *defenses: nn.Module) -> None:
        super().__init__()
        if not callable(classifier) or isinstance(classifier, type):
            raise TypeError(f"classifier must be a module or function, got {classifier!r}")
        for defense in defenses:
            if not isinstance(defense, nn.Module):
                raise TypeError(
                    f"defenses must be module instances, got {defense!r}; pass a list as "
                    "Defended(classifier, *defenses)"
                )
        # a single flat list, because a report names all defenses
        inner = classifier if isinstance(classifier, Defended) else None
        self.classifier = classifier if inner is None else inner.classifier
        self.defenses = nn.ModuleList([*defenses, *(inner.defenses if inner is not None else ())])

    @property
    def randomized(self) -> bool:
        """Whether two passes over the same images differ; if so, attacks should average passes."""
        parts = (self.classifier, *self.defenses)
        return any(bool(getattr(part, "randomized", False)) for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[B, C]``, with a gradient in the pixels."""
        for defense in self.defenses:
            images = defense(images)
        return self.classifier(images)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # forward descriptive attributes only. An attack that used clip, encode_image or logits
            # of the classifier would bypass the defenses while appearing adaptive
            if name not in ("classnames", "engine", "precision", "in_precision"):
                raise
        own = getattr(self.classifier, name)
        if name != "in_precision":
            return own
        return lambda precision: Defended(own(precision), *self.defenses)
