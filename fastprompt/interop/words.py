"""Words of a checkpoint's prompts, decoded from the token embeddings that it stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import check_classnames
from ..clip.frozen import FrozenCLIP
from ..towers.template import DEFAULT
from ..towers.text_layout import start_tokens, text_ends, text_layout, word_tokens


def token_ids(clip: FrozenCLIP, embedded: Tensor) -> Tensor:
    """Return the token ids ``[C, T]`` of token embeddings ``[C, T, width]`` of the model.

    They are compared in the dtype of ``embedded``.

    Raises:
        ValueError: an embedding is not one of the model's, which means another model.
    """
    embedding: Any = clip.text_parts.token_embedding
    table = embedding.weight.detach().cpu().to(embedded.dtype)
    known = {row: i for i, row in enumerate(_bytes(table))}
    ids = [known.get(row, -1) for row in _bytes(embedded.flatten(0, 1))]
    found = torch.tensor(ids).view(embedded.shape[:2])
    if bool((found < 0).any()):
        row, place = (found < 0).nonzero()[0].tolist()
        distance = (table.double() - embedded[row, place].double()).norm(dim=1)
        nearest = int(distance.argmin())
        raise ValueError(
            f"has a token_suffix that is not of the vocabulary of {clip.name}: token {place + 1} "
            f"of class {row + 1} is none of its {len(table)} token embeddings (the nearest, of "
            f"{text_of(clip, [nearest])!r}, differs by {float(distance[nearest]):.1e}); pass the "
            "model that the prompts were tuned on as clip"
        )
    return found


def _bytes(rows: Tensor) -> list[bytes]:
    """Return each row of ``[N, width]`` as bytes; equal rows, with -0 as 0, give equal bytes."""
    raw = (rows + 0.0).contiguous().view(torch.uint8)
    return [row.tobytes() for row in raw.numpy()]


def text_of(clip: FrozenCLIP, ids: Sequence[int]) -> str:
    """Decode token ids to text; the ids themselves if the tokenizer does not decode."""
    decode = getattr(clip.tokenizer, "decode", None)
    return str(decode(list(ids))).strip() if callable(decode) else f"tokens {list(ids)}"


class Words:
    """Words after the context of C prompts, as a checkpoint's ``token_suffix`` stores them.

    Args:
        clip: the model, for its tokenizer.
        ids: token ids after the context, ``[C, T]``: fixed words, class name, period, end token.

    Raises:
        ValueError: a row has no end token.
    """

    def __init__(self, clip: FrozenCLIP, ids: Tensor) -> None:
        self.clip, ends = clip, text_ends(clip, ids).tolist()
        self.rows = [row[:end] for row, end in zip(ids.tolist(), ends, strict=True)]

    def names(self, *, fixed_words: bool) -> list[str]:
        """Return the class names as decoded: in lower case, with spaces around punctuation.

        Args:
            fixed_words: regard the first words that all classes share as fixed words.
        """
        period = self._tokens(".")
        ends = [len(row) - len(period) for row in self.rows]
        if any(row[end:] != period for row, end in zip(self.rows, ends, strict=True)):
            raise ValueError("has prompts whose last token is not a period; pass classnames")
        # a name that the others begin with, such as "cat" with "cat fish", is not a fixed word
        fixed = min(self._common(), min(ends) - 1) if fixed_words else 0
        return [
            text_of(self.clip, row[fixed:end]) for row, end in zip(self.rows, ends, strict=True)
        ]

    def _common(self) -> int:
        """Return the number of first tokens that all rows share."""
        if len(self.rows) == 1:
            raise ValueError(
                "has a single class: its name can't be told from fixed words; pass classnames"
            )
        together = list(zip(*self.rows, strict=False))
        return next((i for i, t in enumerate(together) if len(set(t)) > 1), len(together))

    def template(self, classnames: Sequence[str]) -> str:
        """Return the template with the fixed words before the class names.

        Raises:
            ValueError: the class names are not those of the checkpoint, in its order.
        """
        names = check_classnames(classnames)
        if len(names) != len(self.rows):
            raise ValueError(f"was tuned on {len(self.rows)} classes, got {len(names)} classnames")
        fixed = []
        for i, (name, row) in enumerate(zip(names, self.rows, strict=True)):
            own = self._tokens(f"{name}.")
            if row[len(row) - len(own) :] != own:
                raise ValueError(
                    f"was tuned on other classes: number {i + 1} is {text_of(self.clip, row)!r}, "
                    f"got {name!r} in classnames; pass the classes of tuning in their order, or "
                    "omit classnames"
                )
            fixed.append(row[: len(row) - len(own)])
        if any(words != fixed[0] for words in fixed):
            raise ValueError("has fixed words that differ between its classes")
        if not fixed[0]:
            return DEFAULT
        words = text_of(self.clip, fixed[0]).replace("{", "{{").replace("}", "}}")
        return f"[ctx] {words} {{}}."

    def check(self, template: str, classnames: Sequence[str], n_ctx: int) -> None:
        """Raise unless the template gives the checkpoint's tokens around the context."""
        layout = text_layout(self.clip, classnames, n_ctx, template=template)
        places, start = torch.arange(layout.length), start_tokens(self.clip)
        words = (places >= start) & (places < layout.ends[:, None])
        kept = words.scatter(1, layout.context, False)
        for name, row, held, ids in zip(classnames, self.rows, kept, layout.ids, strict=True):
            own = ids[held].tolist()
            if own != row:
                raise ValueError(
                    f"has the words {text_of(self.clip, row)!r} for {name!r}, but the template "
                    f"{template!r} gives {text_of(self.clip, own)!r}"
                )

    def _tokens(self, text: str) -> list[int]:
        return [int(token) for token in word_tokens(self.clip, text)]
