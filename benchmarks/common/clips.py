"""The prompted CLIPs of the ladder's rungs: published code, and what a careful user makes of it.

``eager`` is the reference engine itself: open_clip's modules, 77 tokens a class, the text encoder
in every forward pass, the attack's too. Each rung above it changes what its class says, and keeps
what the one below it has changed.
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
from fastprompt.clip.parts import TextParts
from fastprompt.model.outputs import Prepared, Seen
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.mixture import Head, MixtureHead, PlainMixtureHead
from fastprompt.towers import ReferenceTextTower
from fastprompt.towers.base import Tower
from fastprompt.tuning.online_pgd import OnlinePGD

from .sizes import ON_GPU

T = TypeVar("T")


class HoistedCLIP(PromptedCLIP):
    """Eager towers, but class features once a step, held fixed in the attack; nothing else."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], prompts: nn.Module, **options: Any
    ) -> None:
        super().__init__(clip, classnames, prompts, engine="reference", **options)
        self.engine = "hoisted"  # not "reference": a step's attack and loss share the features

    @property
    def head(self) -> Head | None:
        """The mixture spelled out, as on the reference engine."""
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
        """Two passes, as published code makes them."""
        prepared = prepared or self.prepare()
        clean, attacked = (self.see(x, prepared, keep_layers=keep_layers) for x in (images, adv))
        return clean, attacked


class TrimmedTextTower(ReferenceTextTower):
    """open_clip's modules on sequences that end where the longest class does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("ids", self.layout.trimmed().ids, persistent=False)

    def _transformer(self, parts: TextParts, x: Tensor, *rest: Any) -> Tensor:
        mask, length = parts.attn_mask, x.shape[1]
        cut = None if mask is None else mask[:length, :length]
        return super()._transformer(dataclasses.replace(parts, attn_mask=cut), x, *rest)


class CarefulCLIP(HoistedCLIP):
    """Hoisted and trimmed; on a GPU under bfloat16 autocast (TF32 is the timing's to allow)."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], prompts: nn.Module, **options: Any
    ) -> None:
        super().__init__(clip, classnames, prompts, **options)
        text = self.text
        self.text = TrimmedTextTower(
            clip, self.classnames, text.n_ctx, position="end", n_prompts=text.n_prompts
        ).to(clip.device)

    def _run(self, function: Callable[..., T], tower: Tower, *tensors: Tensor | None) -> T:
        self.text.refresh()
        self.image.refresh()
        function = self._maybe_compiled(function)
        if self.clip.device.type != "cuda":
            return function(self, *tensors)
        with torch.autocast("cuda", torch.bfloat16):
            return function(self, *tensors)

    def _maybe_compiled(self, function: Callable[..., T]) -> Callable[..., T]:
        return function


class CompiledCLIP(CarefulCLIP):
    """The careful one through `torch.compile`."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], prompts: nn.Module, **options: Any
    ) -> None:
        super().__init__(clip, classnames, prompts, **options)
        self.compiled = True

    def _run(self, function: Callable[..., T], tower: Tower, *tensors: Tensor | None) -> T:
        with plain_attention():  # inside, it would break the graph
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
    """Inside, no CUDA graph, whose memory is not seen, and no compiled code, whose FLOPs are not.

    Args:
        compiled: what is compiled stays so.
    """
    before, failure = model.compiled, attack._ascent.failure if attack else ""
    model.compiled = before and compiled
    if attack:
        attack._ascent.failure = "it is looked into"
    try:
        yield
    finally:
        model.compiled = before
        if attack:
            attack._ascent.failure = failure


# None: the tuner's own model, on the reference or on the fast engine
CLIPS: Mapping[str, type[HoistedCLIP] | None] = {
    "eager": None,
    "eager-hoisted": HoistedCLIP,
    "eager-careful": CarefulCLIP,
    "compiled": CompiledCLIP,
    "fastprompt": None,
}

# of rungs that are not in float32
DTYPES: Mapping[str, torch.dtype] = (
    dict.fromkeys(("eager-careful", "compiled", "fastprompt"), torch.bfloat16) if ON_GPU else {}
)


def prompted(rung: str, clip: Any, names: list[str], prompts: Any) -> PromptedCLIP:
    """The rung's model."""
    kind = CLIPS[rung]
    if kind is not None:
        return kind(clip, names, prompts)
    return PromptedCLIP(
        clip, names, prompts, engine="fast" if rung == "fastprompt" else "reference"
    )
