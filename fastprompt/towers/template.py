"""Templates of a prompt: where its context tokens, fixed words and class name are."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

CONTEXT = "[ctx]"
DEFAULT = "[ctx] {}."  # CoOp's
# CoOp's positions of the class name
POSITIONS = {"end": DEFAULT, "middle": "[ctx] {} [ctx].", "front": "{} [ctx]."}


@dataclass(frozen=True)
class Template:
    """Text of a prompt with a placeholder ``{}`` for the class name and ``[ctx]`` for the context.

    Attributes:
        before: fixed words before the class name, split at each ``[ctx]``.
        after: those after it.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def markers(self) -> int:
        """Number of ``[ctx]``: 1, or 2 for a context in two halves."""
        return len(self.before) + len(self.after) - 2

    @property
    def leading(self) -> str:
        """Fixed words before the class name."""
        return _join(self.before).strip()

    def text(self, name: str) -> str:
        """Return the prompt of a class without the context."""
        return self._whole(name, self.after)

    def preceding(self, marker: int, name: str) -> str:
        """Return the text of a class before a ``[ctx]``, without the context."""
        if marker < len(self.before) - 1:
            return _join(self.before[: marker + 1]).strip()
        return self._whole(name, self.after[: marker - len(self.before) + 2])

    def _whole(self, name: str, after: tuple[str, ...]) -> str:
        return _join((_join(self.before) + name + after[0], *after[1:])).strip()


def _join(parts: tuple[str, ...]) -> str:
    """Join the parts around each ``[ctx]``, without the spaces before it."""
    text = parts[0]
    for part in parts[1:]:
        text = text.rstrip() + part
    return text


def _split(text: str) -> tuple[str, ...]:
    """Split at each ``[ctx]``, with a space where the words around it would become one token."""
    first, *others = text.split(CONTEXT)
    parts = [first]
    for part in others:
        last = "".join(parts).rstrip()[-1:]
        mark = part[:1].strip() and not part[0].isalnum()
        apart = part[:1].isspace() or (mark and (not last or last.isalnum()))
        parts.append(part if apart else f" {part}")
    return tuple(parts)


def parse_template(template: str) -> Template:
    """Parse a template such as ``"[ctx] of a {}."``.

    It has one ``{}``, and one ``[ctx]``, or two for a context in two halves, such as ``"[ctx] {}
    [ctx]."``. Words around a ``[ctx]`` stay separate, with or without a space. Braces in the text
    are doubled, as in `str.format`.

    Raises:
        ValueError: the template has another number of ``{}`` or ``[ctx]``.
        TypeError: the template is not a string.
    """
    if not isinstance(template, str):
        raise TypeError(f"template must be a string, got {type(template).__name__}")
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"template: {template!r} is not valid ({error}); write braces in the text as '{{{{' "
            "and '}}'"
        ) from None
    names = [(field, spec, how) for _, field, spec, how in pieces if field is not None]
    if names != [("", "", None)]:
        raise ValueError(
            f"template must have exactly one '{{}}', where the class name goes, got {template!r}; "
            "write other braces as '{{' and '}}'"
        )
    place = next(i for i, piece in enumerate(pieces) if piece[1] is not None)
    texts = [piece[0] for piece in pieces]
    halves = ("".join(texts[: place + 1]), "".join(texts[place + 1 :]))
    before, after = map(_split, halves)
    found = Template(before, after)
    if found.markers not in (1, 2):
        raise ValueError(
            f"template must have {CONTEXT!r} once, or twice for a context in two halves, got "
            f"{template!r}"
        )
    return found
