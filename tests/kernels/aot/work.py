"""Bytes and operations of each kernel at its benchmark's shape, for `estimates`.

A function per kernel takes a launch's arguments by name. What is needed at least counts inputs and
outputs once, and no padding; what is done counts what the programs read, whole tiles included.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers.compiled_kernels import Launch


@dataclass(frozen=True)
class Work:
    """Work of one launch.

    Attributes:
        needed: bytes of the inputs and outputs.
        read: bytes that the programs read and write, from the second-level cache on.
        flops: operations needed, by kind of unit: ``"tensor"`` (bfloat16) or ``"float32"``.
        done: operations of all tiles.
    """

    needed: float
    read: float
    flops: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)


def _size(value: Any) -> int:
    """Return the bytes of a tensor, or of a tuple of tensors; 0 for None."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.itemsize
    return sum(map(_size, value)) if isinstance(value, tuple) else 0


def _streaming(launch: Launch) -> Work:
    """Each argument is read or written once, with a few operations per entry."""
    moved = sum(map(_size, launch.given.values()))
    return Work(moved, moved)


# mixture_logits


def _mixture(g: dict[str, Any]) -> tuple[int, int, int, int]:
    return tuple(g.get(name, 0) for name in "BCKD")  # type: ignore[return-value]


def _gram(launch: Launch) -> Work:
    g = launch.given
    _, classes, prompts, width = _mixture(g)
    moved = _size(g["text_ptr"]) + _size(g["gram_ptr"]) + _size(g["inv_norm_ptr"])
    needed, done = (2 * classes * k * k * width for k in (prompts, g["KP"]))
    return Work(moved, moved, {"tensor": needed}, {"tensor": done})


def _features(launch: Launch) -> tuple[float, float]:
    """Bytes and operations of all programs' products of images by text features."""
    g = launch.given
    rows, columns, width = g["BLOCK_C"], g["BLOCK_B"], g["D"]
    each = (rows + columns) * width * g["text_ptr"].itemsize
    prompts = launch.programs * g["n_prompts"]
    return prompts * each, prompts * 2 * rows * columns * width


def _products(launch: Launch) -> Work:
    g = launch.given
    images, classes, prompts, width = _mixture(g)
    inputs = sum(_size(g[f"{name}_ptr"]) for name in ("image", "text", "router", "inv_norm"))
    read, done = _features(launch)
    needed = inputs + 4 * images * classes
    read += _size(g["parts_ptr"])
    return Work(needed, read, {"tensor": 2 * images * classes * prompts * width}, {"tensor": done})


def _small(launch: Launch, needed: float, read: float) -> Work:
    """Add the norms: a product of two weights and a Gram matrix per image and class."""
    g = launch.given
    images, classes, prompts, _ = _mixture(g)
    padded = -(-prompts // g["SLICE"]) * g["SLICE"]
    rows = 4 * prompts * padded * g["BLOCK_C"] * launch.programs
    done = 2 * g["BLOCK_B"] * g["BLOCK_C"] * prompts * padded * launch.programs
    flops = 2 * images * classes * prompts * prompts
    return Work(needed + _size(g["gram_ptr"]), read + rows, {"float32": flops}, {"float32": done})


def _logits(launch: Launch) -> Work:
    plane = _size(launch.given["logits_ptr"])
    return _small(launch, 4 * plane, 3 * plane + _size(launch.given["parts_ptr"]))


def _factors(launch: Launch) -> Work:
    names = ("dlogits", "cosine", "inverse", "alpha", "twice_beta")
    planes = sum(_size(launch.given[f"{name}_ptr"]) for name in names)
    return _small(launch, planes, planes + _size(launch.given["dw_ptr"]))


def _marginals(launch: Launch) -> Work:
    g = launch.given
    images, classes, prompts, width = _mixture(g)
    inputs = sum(_size(g[f"{name}_ptr"]) for name in ("image", "text", "inv_norm", "alpha"))
    read, done = _features(launch)
    read += launch.programs * g["n_prompts"] * 4 * g["BLOCK_B"] * g["BLOCK_C"]
    sums = _size(g["dw_ptr"]) + _size(g["along_ptr"])
    flops = 2 * images * classes * prompts * width
    return Work(inputs + sums, read + sums, {"tensor": flops}, {"tensor": done})


def _gamma(launch: Launch) -> Work:
    g = launch.given
    images, classes, prompts, _ = _mixture(g)
    beta, out = _size(g["twice_beta_ptr"]), _size(g["gamma_ptr"])
    flops, done = (2 * images * classes * prompts * k for k in (prompts, g["KP"]))
    return Work(beta + out, prompts * beta + out, {"float32": flops}, {"float32": done})


def _text_gradient(launch: Launch) -> Work:
    g = launch.given
    images, classes, prompts, width = _mixture(g)
    names = ("image", "text", "gram", "alpha", "gamma", "along", "dtext")
    needed = sum(_size(g[f"{name}_ptr"]) for name in names)
    item, rows, columns = g["text_ptr"].itemsize, g["ROWS"], g["BLOCK_D"]
    each = item * columns * (images + 3 * rows) + 4 * images * (g["CLASSES"] + prompts)
    each += 8 * rows * rows // g["CLASSES"]
    flops = 2 * classes * prompts * width * (images + prompts)
    done = launch.programs * 2 * rows * columns * (images + rows)
    return Work(needed, launch.programs * each, {"tensor": flops}, {"tensor": done})


def _image_gradient(launch: Launch) -> Work:
    g = launch.given
    images, classes, prompts, width = _mixture(g)
    inputs = _size(g["text_ptr"]) + _size(g["alpha_ptr"])
    rows, inner, columns = g["BLOCK_B"], g["BLOCK_C"], g["BLOCK_D"]
    steps = launch.programs * g["n_steps"]
    read = steps * inner * (4 * rows + prompts * columns * g["text_ptr"].itemsize)
    flops = 2 * images * classes * prompts * width
    done = steps * prompts * 2 * rows * inner * columns
    return Work(
        inputs + 4 * images * width,
        read + _size(g["parts_ptr"]),
        {"tensor": flops},
        {"tensor": done},
    )


def _image_router_scale(launch: Launch) -> Work:
    g = launch.given
    outputs = sum(_size(g[f"{name}_ptr"]) for name in ("dimage", "drouter", "weights"))
    parts = _size(g["parts_ptr"]) + _size(g["dw_ptr"]) + _size(g["dscale_parts_ptr"])
    needed = 4 * g["B"] * (g["D"] + g["K"])
    return Work(outputs + needed, outputs + parts)


# prefix_attention: the products of queries by the keys that they see


def _attention(launch: Launch, *, products: int, keys: float, tile: str, tokens: str) -> Work:
    """Count queries and keys: a tile of one reads those of the other that are near, and a prefix.

    Args:
        products: number of products per pair of a query and a key.
        keys: mean number of keys that a query sees.
        tile, tokens: names of the number of rows per tile, and of all rows.
    """
    g = launch.given
    moved = sum(map(_size, g.values()))
    rows, width, heads = g[tokens], g["D"], g["heads"]
    near = 64  # tokens of a tile's first and last class outside of it, and whole blocks
    each = g[tile] + near + g.get("n_prefix", 0)
    done = launch.programs * products * 2 * g[tile] * (each + 32) * width
    flops = products * 2 * rows * heads * keys * width
    extra = launch.programs * (near + g.get("n_prefix", 0)) * 2 * width * g["q_ptr"].itemsize
    return Work(moved, moved + extra, {"tensor": flops}, {"tensor": done})


# names of 2 to 8 tokens behind 17 of a prefix
_OWN, _PREFIX = 3.4, 17


def _prefix_forward(launch: Launch) -> Work:
    return _attention(launch, products=2, keys=_OWN + _PREFIX, tile="BLOCK_M", tokens="n_queries")


def _query_backward(launch: Launch) -> Work:
    return _attention(launch, products=3, keys=_OWN + _PREFIX, tile="BLOCK_M", tokens="n_queries")


def _suffix_keys(launch: Launch) -> Work:
    return _attention(launch, products=4, keys=_OWN, tile="BLOCK_N", tokens="n_tokens")


def _prefix_keys(launch: Launch) -> Work:
    g = launch.given
    names = ("q", "dout", "lse", "delta", "prefix_k", "prefix_v")
    inputs = sum(_size(g[f"{name}_ptr"]) for name in names)
    pairs = g["n_queries"] * g["heads"] * 4 * 2 * g["D"]
    return Work(
        inputs + 2 * _size(g["prefix_k_ptr"]),
        inputs + _size(g["parts_ptr"]),
        {"tensor": pairs * g["n_prefix"]},
        {
            "tensor": pairs
            * g["BLOCK_P"]
            * -(-g["chunk"] // g["BLOCK_M"])
            * g["BLOCK_M"]
            / g["chunk"]
        },
    )


def _sum_of_parts(launch: Launch) -> Work:
    g = launch.given
    outputs = _size(g["dk_ptr"]) + _size(g["dv_ptr"])
    return Work(3 * outputs, outputs + _size(g["parts_ptr"]))


WORK: dict[str, Callable[[Launch], Work]] = {
    "_gram_kernel": _gram,
    "_products_kernel": _products,
    "_mixture_logits_kernel": _logits,
    "_factors_kernel": _factors,
    "_marginals_kernel": _marginals,
    "_gamma_kernel": _gamma,
    "_text_gradient_kernel": _text_gradient,
    "_image_gradient_kernel": _image_gradient,
    "_image_router_scale_gradient_kernel": _image_router_scale,
    "_prefix_attention_kernel": _prefix_forward,
    "_query_backward_kernel": _query_backward,
    "_suffix_keys_backward_kernel": _suffix_keys,
    "_prefix_keys_backward_kernel": _prefix_keys,
    "_sum_prefix_parts_kernel": _sum_of_parts,
    "_row_sums_kernel": _streaming,
    "_row_distance_kernel": _streaming,
    "_row_gradient_kernel": _streaming,
    "_consistency_loss_kernel": _streaming,
    "_consistency_loss_backward_kernel": _streaming,
    "_pgd_step_kernel": _streaming,
    "_apgd_step_kernel": _streaming,
    "_random_start_kernel": _streaming,
}
