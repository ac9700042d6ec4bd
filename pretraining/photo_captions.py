"""Captions of the photographs, and which of them are true of which class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .photo_words import WORDS

NAMES = list(WORDS)
# "{}" stands for a noun with its article
TEMPLATES = (
    "{}",
    "{}.",
    "a photo of {}",
    "a photo of {}.",
    "a photograph of {}.",
    "a picture of {}.",
    "an image of {}.",
    "a small photo of {}.",
    "a blurry photo of {}.",
    "a good photo of {}.",
    "a close-up photo of {}.",
    "this picture shows {}.",
)
# of class names, as zero-shot classification writes them
PROMPTS = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of a {}.",
    "{}",
    "a {}.",
    "a picture of a {}.",
    "a photo of the {}.",
    "an image of a {}.",
)
_BOTH = ("{own}, {group}", "{group}, {own}", "{own}, which is {group}", "{group}, namely {own}")


def _truths() -> dict[str, Tensor]:
    """Return of which classes each phrase is true, bool ``[C]``."""
    truths: dict[str, Tensor] = {}
    for label, (name, (own, groups)) in enumerate(WORDS.items()):
        for phrase in (name, *own, *groups):
            truths.setdefault(phrase, torch.zeros(len(NAMES), dtype=torch.bool))[label] = True
    return truths


TRUTHS = _truths()


def with_article(phrase: str) -> str:
    """Return "a dog" for "dog", "an ant" for "ant"."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Captions:
    """Captions, and whether caption j is true of class c: bool ``[len(texts), C]``."""

    texts: list[str]
    truths: Tensor

    def true_of(self, labels: Tensor) -> Tensor:
        """Return whether caption j is true of a picture of class i: bool ``[N, len(texts)]``."""
        return self.truths[:, labels].T


def describe_classes(labels: Tensor, generator: torch.Generator) -> Captions:
    """Draw a random caption for a picture of each label, such as "a dog, a golden retriever"."""
    n = len(labels)
    kind = torch.rand(n, generator=generator).tolist()
    draws = torch.randint(1 << 30, (n, 4), generator=generator).tolist()
    texts, truths = [], []
    for label, how, (a, b, c, d) in zip(labels.tolist(), kind, draws, strict=True):
        name = NAMES[label]
        own, groups = WORDS[name]
        group, template = groups[a % len(groups)], TEMPLATES[b % len(TEMPLATES)]
        word = own[c % len(own)] if how < 0.2 or how > 0.9 else name
        if how < 0.65:
            phrase, truth = with_article(word), TRUTHS[word]
        elif how < 0.8:
            phrase, truth = with_article(group), TRUTHS[group]
        else:  # the super-class adds nothing to what is true
            both = {"own": with_article(word), "group": with_article(group)}
            phrase, truth = _BOTH[d % len(_BOTH)].format(**both), TRUTHS[word] & TRUTHS[group]
        texts.append(template.format(phrase))
        truths.append(truth)
    return Captions(texts, torch.stack(truths))
