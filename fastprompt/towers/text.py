"""Class features from a learned context: ``[SOS, context, class name, EOS]``."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._checks import check_classnames
from ..clip import FrozenCLIP, plain_attention


def _attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """On the CPU the unfused kernel: at the length of a prompt its backward is the faster one."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class TextTower(nn.Module):
    """The frozen text tower with a shared context in front of each class name.

    The class name follows the context and a period follows the name, as in CoOp. Attention is
    causal, so what stands behind the end token never reaches it: the sequences are cut to the
    longest prompt, which changes no feature.

    Args:
        clip: the frozen model.
        classnames: C distinct names; underscores count as spaces.
        n_ctx: M, the number of context tokens.

    Raises:
        ValueError: the text tower takes no prompts (the reason is given), or a class name is too
            long for the context length.
    """

    name_tokens: Tensor
    eos: Tensor

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], n_ctx: int) -> None:
        super().__init__()
        parts = clip.text_parts
        if isinstance(parts, str):
            raise ValueError(f"{clip.name} takes no text prompts: {parts}")
        names = check_classnames(classnames)
        tokens = clip.tokenizer([f"{n}." for n in names])
        is_end = tokens == parts.eos_id
        end = is_end.int().argmax(1) if parts.pool_type == "eos" else tokens.argmax(1)
        used = end + 1 + n_ctx
        longest = int(used.argmax())
        if int(used[longest]) > clip.context_length:
            # a name longer than the whole context was cut by the tokenizer: "at least" covers it
            raise ValueError(
                f"classnames: {names[longest]!r} needs at least {int(end[longest]) - 1} tokens; "
                f"{n_ctx} context tokens leave room for {max(0, clip.context_length - n_ctx - 2)} "
                f"of {clip.context_length}: shorten the name or lower n_ctx"
            )
        self.clip = clip
        self.parts = parts
        self.n_ctx = n_ctx
        self.length = int(used.max())
        width = self.length - n_ctx
        with torch.no_grad():
            embedded = parts.token_embedding(tokens[:, :width].to(clip.device))
        self.register_buffer("name_tokens", embedded, persistent=False)  # [C, width, text_width]
        self.register_buffer("eos", (end + n_ctx).to(clip.device), persistent=False)

    def word_context(self, words: str) -> Tensor:
        """Embeddings of the first tokens of ``words``, ``[at most M, text_width]``."""
        tokens = self.clip.tokenizer([words])[0]
        is_end = tokens == self.parts.eos_id
        end = int(is_end.int().argmax() if self.parts.pool_type == "eos" else tokens.argmax())
        if end < 2:
            raise ValueError(f"ctx_init must hold a word, got {words!r}")
        kept = tokens[1 : min(end, self.n_ctx + 1)].to(self.clip.device)
        with torch.no_grad():
            embedded: Tensor = self.parts.token_embedding(kept)
        return embedded

    def forward(self, context: Tensor) -> Tensor:
        """Un-normalised class features ``[C, D]`` of a context ``[M, text_width]``."""
        parts, names = self.parts, self.name_tokens
        if context.shape != (self.n_ctx, parts.width):
            raise ValueError(
                f"context must be [{self.n_ctx}, {parts.width}], got {list(context.shape)}"
            )
        shared = context.to(names.dtype).expand(len(names), -1, -1)
        x = torch.cat([names[:, :1], shared, names[:, 1:]], dim=1)  # [C, length, text_width]
        x = x + parts.positional_embedding[: self.length]
        mask = parts.attn_mask[: self.length, : self.length].to(x)
        with plain_attention(), _attention_kernel(x.device):
            x = parts.transformer(x, attn_mask=mask)
        ends = x[torch.arange(len(x), device=x.device), self.eos]
        ends = parts.ln_final(ends)  # [C, text_width]
        if parts.text_projection is None:
            return ends
        if isinstance(parts.text_projection, nn.Linear):
            return parts.text_projection(ends)
        return ends @ parts.text_projection
