"""CLIP models with prompts, one class for each implementation (rung) of the ladder.

``eager`` is the reference engine: open_clip's modules, 77 tokens per class, and the text encoder in
every forward pass, including the attack's. Each further class adds the optimization that its
docstring names to the class before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastprompt import FrozenCLIP
from fastprompt._utils.attention import plain_attention
from fastprompt._utils.dtypes import multiplies_bf16, own_precision
from fastprompt.clip.parts import TextParts
from fastprompt.model.outputs import Prepared, Seen
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.mixture import Head, MixtureHead, PlainMixtureHead
from fastprompt.towers import ReferenceTextTower
from fastprompt.towers.base import Tower
from fastprompt.tuning.online_pgd import OnlinePGD

from .sizes import DEVICE

T = TypeVar("T")


class HoistedCLIP(PromptedCLIP):
    """Eager encoders; class features are computed once per step and fixed in the attack."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], prompts: nn.Module, **options: Any
    ) -> None:
        super().__init__(clip, classnames, prompts, engine="reference", **options)
        self.engine = "hoisted"  # not "reference": attack and loss of a step share the features

    @property
    def head(self) -> Head | None:
        """The mixture's plain implementation, as on the reference engine."""
        head = getattr(self.prompts, "head", None)
        return PlainMixtureHead(head) if isinstance(head, MixtureHead) else head

    def see_both(
        self,
        images: Tensor,
        adv: Tensor,
        prepared: Prepared | None = None,
        *,
        keep_layers: bool = False,
    ) -> tuple[Seen, Seen]:
        """Run clean and adversarial images in two passes, as published code does."""
        prepared = prepared or self.prepare()
        clean, attacked = (self.see(x, prepared, keep_layers=keep_layers) for x in (images, adv))
        return clean, attacked


class TrimmedTextTower(ReferenceTextTower):
    """open_clip's modules on sequences cut to the length of the longest class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("ids", self.layout.trimmed().ids, persistent=False)

    def _transformer(self, parts: TextParts, x: Tensor, *rest: Any) -> Tensor:
        mask, length = parts.attn_mask, x.shape[1]
        cut = None if mask is None else mask[:length, :length]
        return super()._transformer(dataclasses.replace(parts, attn_mask=cut), x, *rest)


class CarefulCLIP(HoistedCLIP):
    """Hoisted and trimmed; under bfloat16 autocast where the device multiplies it natively.

    The timing code also allows TF32.
    """

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], prompts: nn.Module, **options: Any
    ) -> None:
        super().__init__(clip, classnames, prompts, **options)
        text = self.text
        self.text = TrimmedTextTower(
            clip, self.classnames, text.n_ctx, n_prompts=text.n_prompts
        ).to(clip.device)

    def _run(self, function: Callable[..., T], tower: Tower, *tensors: Tensor | None) -> T:
        self.text.refresh()
        self.image.refresh()
        function = self._maybe_compiled(function)
        if not multiplies_bf16(self.clip.device):
            return function(self, *tensors)
        with torch.autocast(self.clip.device.type, torch.bfloat16):
            return function(self, *tensors)

    def _maybe_compiled(self, function: Callable[..., T]) -> Callable[..., T]:
        return function


class CompiledCLIP(CarefulCLIP):
    """`CarefulCLIP` with `torch.compile`."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], prompts: nn.Module, **options: Any
    ) -> None:
        super().__init__(clip, classnames, prompts, **options)
        self.compiled = True

    def _run(self, function: Callable[..., T], tower: Tower, *tensors: Tensor | None) -> T:
        with plain_attention():  # the attention op would break the compiled graph
            return super()._run(function, tower, *tensors)

    def _maybe_compiled(self, function: Callable[..., T]) -> Callable[..., T]:
        if not self.compiled:  # see `step_by_step`
            return function
        if function not in self._functions:
            self._functions[function] = torch.compile(function, dynamic=False)
        return self._functions[function]


@contextmanager
def step_by_step(
    model: PromptedCLIP, attack: OnlinePGD | None = None, *, compiled: bool = False
) -> Iterator[None]:
    """Disable CUDA graphs, whose memory is not visible, and compiled code, whose FLOPs are not.

    Args:
        compiled: if True, compiled code stays enabled.
    """
    before, failure = model.compiled, attack._ascent.failure if attack else ""
    model.compiled = before and compiled
    if attack:
        attack._ascent.failure = "disabled by step_by_step"
    try:
        yield
    finally:
        model.compiled = before
        if attack:
            attack._ascent.failure = failure


OURS, OURS_FP32 = "fastprompt", "fastprompt-fp32"
# None: the tuner's own model, on the engine and in the precision of `execution`
CLIPS: Mapping[str, type[HoistedCLIP] | None] = {
    "eager": None,
    "eager-hoisted": HoistedCLIP,
    "eager-careful": CarefulCLIP,
    "compiled": CompiledCLIP,
    OURS_FP32: None,
    OURS: None,
}


def execution(rung: str, clip: FrozenCLIP) -> dict[str, str]:
    """Return an implementation's engine and precision, as arguments of tuners and `PromptedCLIP`.

    ``fastprompt-fp32`` has the precision of the weights, which is float64 in an equality check.
    """
    if rung not in (OURS, OURS_FP32):
        return {"engine": "reference"}
    precision = own_precision(clip.dtype) if rung == OURS_FP32 else "auto"
    return {"engine": "fast", "precision": precision}


def multiplied_in_bf16() -> bool:
    """Return whether this machine's device multiplies bfloat16 natively."""
    return multiplies_bf16(torch.device(DEVICE))


def low_dtypes() -> Mapping[str, torch.dtype]:
    """Return the dtypes of the implementations that do not compute in float32."""
    low = ("eager-careful", "compiled", OURS)
    return dict.fromkeys(low, torch.bfloat16) if multiplied_in_bf16() else {}


def in_both_precisions(rungs: tuple[str, ...]) -> tuple[str, ...]:
    """Add fastprompt in float32 before fastprompt, where that runs in bfloat16."""
    if OURS not in rungs or not multiplied_in_bf16():
        return rungs
    at = rungs.index(OURS)
    return (*rungs[:at], OURS_FP32, *rungs[at:])


def prompted(rung: str, clip: Any, names: list[str], prompts: Any) -> PromptedCLIP:
    """Create the model of an implementation."""
    kind = CLIPS[rung]
    if kind is not None:
        return kind(clip, names, prompts)
    return PromptedCLIP(clip, names, prompts, **execution(rung, clip))
