"""Image features without gradients on a CPU: weights in the layout of oneDNN's products.

torch multiplies float32 by the BLAS library, which on many CPUs is slower than oneDNN, and applies
GELU in another pass. `PackedBlock` calls the operations that `torch.compile` generates for frozen
weights: oneDNN's products of weights that were reordered once, with the activation in the product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from ..clip.frozen import FrozenCLIP
from .blocks import OpenBlock
from .image import ImageTower

_FEW = 128  # tokens, below which the call takes longer than the product gains
_SLOPE = 1.702  # of QuickGELU: x * sigmoid(1.702 x)


def packs(clip: FrozenCLIP) -> bool:
    """Return whether torch has oneDNN's operations for the model's device and dtype."""
    return clip.device.type == "cpu" and clip.dtype == torch.float32 and _works()


@functools.cache
def _works() -> bool:
    """Return whether the operations exist and are right: they are not part of torch's API."""
    if not torch.backends.mkldnn.is_available():
        return False
    ramp = torch.linspace(-1, 1, 8 * 16)
    x, layer = ramp.view(8, 16), nn.Linear(16, 8)
    try:
        with torch.no_grad():
            layer.weight.copy_(ramp.view(8, 16).flip(1))
            layer.bias.copy_(ramp[:8])
            out = layer(x)
            wanted = {"none": out, "gelu": F.gelu(out), "swish": F.silu(out)}
            got = {name: _Product(layer.weight, layer.bias, name)(x) for name in wanted}
        return all(torch.allclose(got[name], wanted[name], atol=1e-5) for name in wanted)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False


class _Product:
    """``activation(x @ weight.T + bias)`` for a frozen weight."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: str = "none", kind: str = "none"
    ) -> None:
        ops: Any = torch.ops.mkldnn
        self._weight, self._bias = ops._reorder_linear_weight(weight.detach()), bias
        self._run, self._activation, self._kind = ops._linear_pointwise, activation, kind

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x, self._weight, self._bias, self._activation, [], self._kind)


class PackedBlock(OpenBlock):
    """Block for many float32 tokens without gradients; others take the way of `OpenBlock`."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self._products: dict[str, _Product] = {}

    def __getstate__(self) -> dict[str, Any]:
        # reordered weights cannot be copied: a copy makes its own
        return {**self.__dict__, "_products": {}}

    def _packs(self, x: Tensor) -> bool:
        plain = torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu"
        return not plain and x.numel() >= _FEW * x.shape[-1]

    def _run(self, x: Tensor, name: str, make: Callable[[], _Product]) -> Tensor:
        """Apply a product, which is made on first use."""
        if name not in self._products:
            self._products[name] = make()
        return self._products[name](x)

    def _linear(self, normed: Tensor, rows: slice) -> Tensor:
        if not self._packs(normed):
            return super()._linear(normed, rows)
        weight, bias = self.attn.in_proj_weight[rows], self.attn.in_proj_bias
        own = None if bias is None else bias[rows]
        return self._run(normed, f"rows {rows.start}-{rows.stop}", lambda: _Product(weight, own))

    def _out(self, mixed: Tensor) -> Tensor:
        layer = self.attn.out_proj
        if not self._packs(mixed) or not isinstance(layer, nn.Linear):
            return super()._out(mixed)
        return self._run(mixed, "out", lambda: _Product(layer.weight, layer.bias))

    def _mlp(self, x: Tensor) -> Tensor:
        mlp = self.block.mlp
        known = _parts(mlp) == ("c_fc", "gelu", "c_proj") and isinstance(mlp.c_fc, nn.Linear)
        how = _activation(mlp.gelu) if known else None
        if how is None or not self._packs(x):
            return super()._mlp(x)
        # QuickGELU is swish(1.702 x) / 1.702: the weights take both factors
        slope, *activation = how
        first, last = mlp.c_fc, mlp.c_proj
        hidden = self._run(
            x,
            "first",
            lambda: _Product(first.weight * slope, _scaled(first.bias, slope), *activation),
        )
        return self._run(hidden, "last", lambda: _Product(last.weight / slope, last.bias))


def _parts(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_children())


def _scaled(bias: Tensor | None, slope: float) -> Tensor | None:
    return None if bias is None else bias.detach() * slope


def _activation(module: nn.Module) -> tuple[float, str, str] | None:
    """Return slope, name and kind of an activation that oneDNN has; None for others."""
    if isinstance(module, QuickGELU):
        return _SLOPE, "swish", "none"
    return (1.0, "gelu", module.approximate) if isinstance(module, nn.GELU) else None


class PackedImageTower(ImageTower):
    """`ImageTower` for use without gradients; its features differ from those by rounding."""

    @property
    def fewest(self) -> int:
        """The number of images from which on the packed products are used."""
        return -(-_FEW // len(self.visual.positional_embedding))

    def open_blocks(self, transformer: nn.Module) -> list[OpenBlock]:
        """Wrap the blocks of the transformer."""
        return [PackedBlock(block) for block in transformer.resblocks]  # type: ignore[union-attr]
