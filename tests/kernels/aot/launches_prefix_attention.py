"""Launches of prefix attention at the sizes of a text tower: 1,000 classes, 8 heads of 64."""

from collections.abc import Callable

import torch

from fastprompt.kernels.prefix_attention import launch
from fastprompt.kernels.prefix_attention.arguments import Attention, AttentionBackward

ELEMENTWISE: set[str] = set()
# 8 bytes where every size is 1, which is a constant then
MAY_SPILL = {"_suffix_keys_backward_kernel"}
# the classes of the benchmark have 2 to 8 tokens
_CLASSES, _TOKENS, _PREFIX, _HEADS = 1000, 4997, 17, 8


def _inputs(
    dtype: torch.dtype, prompts: int, last_only: bool, d: int, alone: bool
) -> tuple[torch.Tensor, ...]:
    classes, tokens, prefix, heads = (1, 1, 1, 1) if alone else (_CLASSES, _TOKENS, _PREFIX, _HEADS)

    def projected(n: int, parts: int) -> tuple[torch.Tensor, ...]:
        return torch.empty(prompts, n, parts, heads, d, dtype=dtype, device="meta").unbind(2)

    q, k, v = projected(tokens, 3)
    if last_only:
        (q,) = projected(classes, 1)
    bounds = (torch.empty(n, dtype=torch.int32, device="meta") for n in (classes + 1, tokens))
    return q, k, v, *projected(prefix, 2), *bounds


def _both_ways(
    dtype: torch.dtype, prompts: int, last_only: bool, d: int = 64, *, alone: bool = False
) -> None:
    inputs = _inputs(dtype, prompts, last_only, d, alone)
    out, lse = launch.launch_prefix_attention(Attention(*inputs, last_only, 0.125))
    settings = last_only, 0.125, True, True, True
    given = AttentionBackward(torch.empty_like(out), *inputs, out, lse, *settings)
    launch.launch_prefix_attention_backward(given)


def cases(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """By name; each starts the forward kernel and the four of the backward pass."""
    return {
        "prefix_attention": lambda: _both_ways(dtype, 1, False),
        "prefix_attention-last-only": lambda: _both_ways(dtype, 1, True),
        "prefix_attention-4-prompts": lambda: _both_ways(dtype, 4, False),
        "prefix_attention-4-prompts-last-only": lambda: _both_ways(dtype, 4, True),
        "prefix_attention-wide-heads": lambda: _both_ways(dtype, 1, False, d=128),
        # every number is 1, which Triton takes for a constant
        "prefix_attention-alone": lambda: _both_ways(dtype, 1, False, d=24, alone=True),
    }
