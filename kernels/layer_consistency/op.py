"""Op registration, autograd function and public function of NAP's feature term."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch import Impl, define, once_differentiable, resolve, wide_dtype
from . import eager
from .arguments import Layers, LayersBackward
from .check import check_layers
from .memory_format import gradient_like


def _fake(layers: Layers) -> tuple[Tensor, Tensor]:
    a = layers.a
    dtype = wide_dtype(a[0])
    rows = sum(x.shape[0] for x in a)  # len() would specialize a symbolic size
    return a[0].new_empty(layers.samples, dtype=dtype), a[0].new_empty(rows, 4, dtype=dtype)


def _fake_backward(given: LayersBackward) -> list[Tensor]:
    pairs = zip([*given.a, *given.a], given.wanted, strict=True)
    return [gradient_like(x) for x, want in pairs if want]


_forward = define(
    "layer_consistency",
    Layers,
    "(Tensor value, Tensor norms)",
    eager=eager.layer_consistency,
    launch=".launch:launch_layer_consistency",
    fake=_fake,
)
_backward = define(
    "layer_consistency_backward",
    LayersBackward,
    "Tensor[]",
    eager=eager.layer_consistency_backward,
    launch=".launch:launch_layer_consistency_backward",
    fake=_fake_backward,
)


class _LayerConsistency(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Impl, samples: int, *tensors: Tensor) -> Tensor:
        layers = len(tensors) // 2
        given = Layers(list(tensors[:layers]), list(tensors[layers:]), samples)
        value, norms = _forward(impl, given)
        ctx.save_for_backward(norms, *tensors)
        ctx.impl = impl
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        norms, *tensors = ctx.saved_tensors
        layers = len(tensors) // 2
        wanted = list(ctx.needs_input_grad[2:])
        given = LayersBackward(grad, norms, tensors[:layers], tensors[layers:], wanted)
        places = iter(_backward(ctx.impl, given))
        return None, None, *(next(places) if want else None for want in wanted)


def layer_consistency(
    a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor], *, impl: Impl = "auto"
) -> Tensor:
    """Return the cosine distance between two towers' features, summed over layers.

    For each sample ``sum_l (1 - cos(flat(a_l), flat(b_l)))``: the feature term of NAP (Neural
    Augmented Prompt Tuning), where ``a`` and ``b`` are all tokens after each image block, of clean
    and of adversarial images. The forward and the backward pass read each input once; only four
    numbers per layer and sample are saved in addition to the inputs.

    Precision: ``1 - cos`` is computed from ``a - b``, not from a cosine near 1: in float32 its
    relative error stays near 1e-6 however near ``a`` is to ``b``, if the norms are near as well.
    Where the norms differ more than the directions, an absolute error of up to about
    ``4e-7 * min(1, (|a| - |b|)^2 / (2 |a| |b|))`` remains; the tests measure it. Sums are
    accumulated in float32: norms below 1e-19 or above 1e19 are out of range.

    If either vector is zero, the cosine is defined as 0 and the distance as 1, and that layer gives
    no gradient to either side.

    Args:
        a: a list of tensors ``[B, ...]``, one per layer, whose trailing shapes may differ; or a
            stack ``[L, B, ...]``. Floating; float64 uses the plain implementation.
        b: likewise, with the shapes, dtype and device of ``a``.
        impl: ``"triton"`` (GPU kernels), ``"torch"`` (plain implementation, any device), or
            ``"auto"``: the kernels on a GPU except for float64, else the plain implementation.

    Returns:
        ``[B]``, float32 (float64 for float64), differentiable once w.r.t. every tensor of ``a`` and
        ``b``. The kernels read samples that are dense in memory without a copy, for any batch
        stride and any order of dimensions, if ``b`` has the same order; they copy others.

    Raises:
        TypeError: the inputs are neither two lists nor two tensors, or dtypes differ or are not
            floating.
        ValueError: there is no layer, shapes or devices do not match, or ``impl`` is unknown.
        RuntimeError: ``impl="triton"`` cannot run.
    """
    listed_a, listed_b, samples = check_layers(a, b)
    chosen = resolve(impl, *listed_a, *listed_b)
    return _LayerConsistency.apply(chosen, samples, *listed_a, *listed_b)
