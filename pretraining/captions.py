"""Captions of the pre-training scenes, and which captions are true of which image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastprompt.data.sdf import PATTERNS, SHAPES
from fastprompt.data.shapes import COLORS, COUNTS, SIZES, Scenes

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a photo of {}.",
    "a picture of {}",
    "a picture of {}.",
    "an image of {}.",
    "a drawing of {}.",
    "this picture shows {}.",
)
_NOUNS = ("shape", "object", "thing")
# probability that a caption mentions an attribute; the number is always mentioned for a single
# object ("a star")
_MENTION = {"shape": 0.85, "color": 0.8, "pattern": 0.5, "size": 0.35, "count": 0.5}


@dataclass(frozen=True)
class Captions:
    """Captions of scenes; ``named[attribute][i]``: whether ``texts[i]`` mentions the attribute."""

    texts: list[str]
    scenes: Scenes
    named: dict[str, Tensor]

    def true_of(self, scenes: Scenes) -> Tensor:
        """Return whether caption j is true of scene i: bool ``[len(scenes), len(texts)]``.

        A caption is true if every attribute it mentions matches; without a number it refers to
        several objects.
        """
        holds = torch.ones(len(scenes), len(self.texts), dtype=torch.bool)
        for name in ("shape", "color", "pattern", "size"):
            mine, theirs = getattr(self.scenes, name), getattr(scenes, name)
            holds &= (theirs[:, None] == mine[None, :]) | ~self.named[name][None, :]
        same = scenes.count[:, None] == self.scenes.count[None, :]
        several = (scenes.count > 0)[:, None] & ~self.named["count"][None, :]
        return holds & (same | several)


def describe_scenes(scenes: Scenes, generator: torch.Generator) -> Captions:
    """Draw one random caption for each scene, such as "two small striped red stars"."""
    n = len(scenes)
    chance = {k: torch.rand(n, generator=generator) < p for k, p in _MENTION.items()}
    chance["count"] |= scenes.count == 0
    one = torch.rand(n, generator=generator) < 0.3  # "one star" rather than "a star"
    noun = torch.randint(len(_NOUNS), (n,), generator=generator)
    template = torch.randint(len(TEMPLATES), (n,), generator=generator)
    texts = []
    for i in range(n):
        count = int(scenes.count[i])
        words = []
        if count and chance["count"][i]:
            words.append(COUNTS[count])
        if chance["size"][i]:
            words.append(SIZES[int(scenes.size[i])])
        if chance["pattern"][i]:
            words.append(PATTERNS[int(scenes.pattern[i])])
        if chance["color"][i]:
            words.append(COLORS[int(scenes.color[i])])
        words.append(SHAPES[int(scenes.shape[i])] if chance["shape"][i] else _NOUNS[int(noun[i])])
        if count:
            words[-1] += "es" if words[-1].endswith("s") else "s"
        else:
            vowel = words[0][0] in "aeio"
            words.insert(0, "one" if one[i] else ("an" if vowel else "a"))
        texts.append(TEMPLATES[int(template[i])].format(" ".join(words)))
    return Captions(texts, scenes, chance)
