"""Launchers of the mixture's kernels: grids and block sizes."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .._dispatch import dot_precision, interpreted
from . import gradient_kernel, kernel
from .arguments import Mixture, MixtureBackward, Prompts

# programs that fill a large GPU once: with fewer, tiles are smaller and sums are split
_PROGRAMS = 128
# pairs of a prompt and a class per program of the text gradient
_ROWS = 64
# the smallest size that `tl.dot` accepts
_SLICE = 16
# block of the width in the kernel that sums parts
_SUM_BLOCK = 128
# images and classes per tile of the kernels without products of features
_SMALL_TILE = (16, 64)
# set explicitly, since the defaults differ between Triton versions
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
_SMALL_OPTIONS = {
    "SLICE": _SLICE,
    "BLOCK_B": _SMALL_TILE[0],
    "BLOCK_C": _SMALL_TILE[1],
    "num_stages": 2,
    **_OPTIONS,
}


class _Tiles(NamedTuple):
    """Tiles of the kernels that multiply images by text features.

    Attributes:
        images, classes: sizes of a tile.
        tiles_b, tiles_c: numbers of tiles.
        n_prompts: prompts per program.
        n_parts: programs per tile, each with other prompts.
    """

    images: int
    classes: int
    tiles_b: int
    tiles_c: int
    n_prompts: int
    n_parts: int

    @property
    def programs(self) -> int:
        return self.tiles_b * self.tiles_c * self.n_parts


def _sizes(image: Tensor, text: Tensor) -> tuple[int, int, int, int]:
    """Return the numbers of images, classes and prompts, and the width."""
    return image.shape[0], text.shape[1], text.shape[0], text.shape[2]


def _padded(n_prompts: int) -> int:
    return max(_SLICE, triton.next_power_of_2(n_prompts))


def _tiles(image: Tensor, text: Tensor, most: int = 128) -> _Tiles:
    """Return the tiles; the prompts are split as far as it takes to fill a GPU."""
    n_images, n_classes, n_prompts, _ = _sizes(image, text)
    # float32 takes three TF32 products, whose split operands need more registers
    narrow = image.element_size() == 2
    images = min(most if narrow else 32, max(16, triton.next_power_of_2(n_images)))
    classes = most if narrow and n_classes > 64 else 64
    tiles_b, tiles_c = triton.cdiv(n_images, images), triton.cdiv(n_classes, classes)
    wanted = triton.cdiv(_PROGRAMS, tiles_b * tiles_c)
    per_part = triton.cdiv(n_prompts, min(n_prompts, wanted))
    return _Tiles(images, classes, tiles_b, tiles_c, per_part, triton.cdiv(n_prompts, per_part))


def _small_tiles(n_images: int, n_classes: int) -> tuple[int, int]:
    """Return the numbers of tiles of images and of classes of the kernels on small tiles."""
    return triton.cdiv(n_images, _SMALL_TILE[0]), triton.cdiv(n_classes, _SMALL_TILE[1])


def _block(features: Tensor, size: int) -> int:
    """Return a product's inner block size; float32 without tensor cores needs more registers."""
    if features.element_size() == 2:
        return size
    return 16 if dot_precision(features.dtype) == "ieee" else 32


def _stages(features: Tensor) -> int:
    """Return the number of pipeline stages, which registers limit as in `_block`."""
    return 2 if _block(features, 64) == 16 else 3


def _tile_options(features: Tensor, tiles: _Tiles) -> dict[str, object]:
    """Return the options of the products' and the marginals kernel."""
    return {
        "PRECISION": dot_precision(features.dtype),
        "WIDEN": interpreted(),
        "BLOCK_B": tiles.images,
        "BLOCK_C": tiles.classes,
        "BLOCK_D": _block(features, 64),
        "num_stages": _stages(features),
        "num_warps": 8,
        "enable_fp_fusion": True,
    }


def launch_mixture_gram(given: Prompts) -> tuple[Tensor, Tensor]:
    """Launch the kernel of `eager.mixture_gram`."""
    text = given.text
    n_prompts, n_classes, width = text.shape
    gram = torch.empty(n_prompts, n_prompts, n_classes, dtype=torch.float32, device=text.device)
    inv_norm = torch.empty(n_prompts, n_classes, dtype=torch.float32, device=text.device)
    kernel._gram_kernel[(n_classes,)](
        text.contiguous(),
        gram,
        inv_norm,
        n_classes,
        n_prompts,
        width,
        NORMALIZED=given.normalized,
        # the norm of a mixture of nearly canceling prompts depends on the last digits
        PRECISION="ieee" if text.dtype == torch.float32 else dot_precision(text.dtype),
        WIDEN=interpreted(),
        KP=_padded(n_prompts),
        # with more prompts, the products alone fill the registers
        BLOCK_D=64 if n_prompts <= 32 else _block(text, 64) // 2,
        **_OPTIONS | {"num_warps": 2 if n_prompts <= 32 else 4},
    )
    return gram, inv_norm


def launch_mixture_logits(given: Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel of `eager.mixture_logits`."""
    image, text, router, scale, gram, inv_norm, temperature = given
    sizes = n_images, n_classes, n_prompts, _ = _sizes(image, text)
    logits, cosine, inverse = (
        torch.empty(sizes[:2], dtype=torch.float32, device=image.device) for _ in range(3)
    )
    weights = torch.empty(n_images, n_prompts, dtype=torch.float32, device=image.device)
    if not n_images:
        return logits, weights, cosine, inverse
    tiles = _tiles(image, text)
    shape = tiles.n_parts, n_images, n_classes
    parts = torch.empty(shape, dtype=torch.float32, device=image.device)
    kernel._products_kernel[(tiles.programs,)](
        image.contiguous(),
        text.contiguous(),
        router.contiguous(),
        inv_norm.contiguous(),
        weights,
        parts,
        temperature,
        *sizes,
        tiles.n_prompts,
        KP=_padded(n_prompts),
        **_tile_options(image, tiles),
    )
    small_b, small_c = _small_tiles(n_images, n_classes)
    kernel._mixture_logits_kernel[(small_b * small_c,)](
        parts,
        weights,
        scale,
        gram.contiguous(),
        logits,
        cosine,
        inverse,
        tiles.n_parts,
        *sizes[:3],
        **_SMALL_OPTIONS,
    )
    return logits, weights, cosine, inverse


def launch_mixture_logits_backward(
    given: MixtureBackward,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernels of `eager.mixture_logits_backward`."""
    dlogits, dweights, image, text, router, scale, gram, inv_norm = given[:8]
    weights, cosine, inverse, temperature, normalized = given[8:13]
    wants_image, wants_text, wants_router, wants_scale = given[13:]
    sizes = n_images, n_classes, n_prompts, width = _sizes(image, text)
    dimage, dtext = _room(image, wants_image), _room(text, wants_text)
    drouter, dscale = _room(router, wants_router), _room(scale, wants_scale)
    if not n_images:
        return dimage, dtext.zero_(), drouter, dscale.zero_()
    image, text, gram, inv_norm = (t.contiguous() for t in (image, text, gram, inv_norm))
    wants_along = wants_text and normalized
    # sums over both images and classes need more registers
    tiles = _tiles(image, text, 64)
    small_b, small_c = _small_tiles(n_images, n_classes)

    def scratch(*shape: int, wanted: bool = True) -> Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=image.device) if wanted else None

    alpha = scratch(n_images, n_classes, wanted=wants_image or wants_text or wants_router)
    twice_beta = scratch(n_images, n_classes, wanted=wants_text)
    # sums over tiles of classes, of the first kernel's tiles, then of the second's
    dw = scratch(small_c + tiles.tiles_c, n_images, n_prompts, wanted=wants_router)
    along = scratch(tiles.tiles_b, n_prompts, n_classes, wanted=wants_along)
    dscale_parts = scratch(small_b * small_c, wanted=wants_scale)
    kernel._factors_kernel[(small_b * small_c,)](
        dlogits.contiguous(),
        scale,
        gram,
        weights,
        cosine,
        inverse,
        alpha,
        twice_beta,
        dw,
        dscale_parts,
        *sizes[:3],
        **_SMALL_OPTIONS | {"num_warps": 8},
    )
    if wants_router or wants_along:
        kernel._marginals_kernel[(tiles.programs,)](
            image,
            text,
            inv_norm,
            weights,
            alpha,
            None if dw is None else dw[small_c:],
            along,
            *sizes,
            tiles.n_prompts,
            **_tile_options(image, tiles),
        )
    if wants_text:
        _text_gradient(image, text, gram, inv_norm, weights, alpha, twice_beta, along, dtext)
    parts = _image_parts(image, text, inv_norm, weights, alpha) if wants_image else None
    if wants_image or wants_router or wants_scale:
        blocks = triton.cdiv(width, _SUM_BLOCK) if wants_image else 1
        gradient_kernel._image_router_scale_gradient_kernel[(n_images * blocks,)](
            parts,
            dw,
            None if dweights is None else dweights.contiguous(),
            weights,
            dscale_parts,
            dimage if wants_image else None,
            drouter if wants_router else None,
            dscale if wants_scale else None,
            temperature,
            0 if parts is None else len(parts),
            0 if dw is None else len(dw),
            small_b * small_c,
            n_images,
            n_prompts,
            width,
            KP=_padded(n_prompts),
            BLOCK_D=_SUM_BLOCK,
            BLOCK_PARTS=16,
            **_OPTIONS,
        )
    return dimage, dtext, drouter, dscale


def _room(like: Tensor, wanted: bool) -> Tensor:
    if not wanted:
        return like.new_empty(0)
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _image_parts(
    image: Tensor, text: Tensor, inv_norm: Tensor, weights: Tensor, alpha: Tensor | None
) -> Tensor:
    """Compute the image gradient in parts, each over some of the classes: ``[parts, B, D]``."""
    sizes = n_images, n_classes, _, width = _sizes(image, text)
    narrow = text.element_size() == 2
    block_b = min(128 if narrow else 32, max(16, triton.next_power_of_2(n_images)))
    block_c, block_d = (64, 128) if narrow else (16, 32)
    if narrow and n_images > 16:
        block_b = max(64, block_b)  # rows of a tensor core's product
    tiles = triton.cdiv(n_images, block_b) * triton.cdiv(width, block_d)
    steps = triton.cdiv(n_classes, block_c)
    n_steps = triton.cdiv(steps, min(steps, triton.cdiv(_PROGRAMS, tiles)))
    n_parts = triton.cdiv(steps, n_steps)
    parts = torch.empty(n_parts, n_images, width, dtype=torch.float32, device=text.device)
    gradient_kernel._image_gradient_kernel[(n_parts * tiles,)](
        text,
        inv_norm,
        weights,
        alpha,
        parts,
        *sizes,
        n_steps,
        PRECISION=dot_precision(text.dtype),
        WIDEN=interpreted(),
        BLOCK_B=block_b,
        BLOCK_C=block_c,
        BLOCK_D=block_d,
        num_stages=_stages(text),
        **_OPTIONS | {"num_warps": 8},
    )
    return parts


def _text_gradient(
    image: Tensor,
    text: Tensor,
    gram: Tensor,
    inv_norm: Tensor,
    weights: Tensor,
    alpha: Tensor | None,
    twice_beta: Tensor | None,
    along: Tensor | None,
    dtext: Tensor,
) -> None:
    sizes = _, n_classes, n_prompts, width = _sizes(image, text)
    gamma = torch.empty(n_prompts, n_prompts, n_classes, dtype=torch.float32, device=image.device)
    gradient_kernel._gamma_kernel[(n_prompts * triton.cdiv(n_classes, 32),)](
        weights,
        twice_beta,
        gamma,
        *sizes[:3],
        KP=_padded(n_prompts),
        BLOCK_B=16,
        BLOCK_C=32,
        num_stages=2,
        **_OPTIONS,
    )
    classes = _ROWS // triton.next_power_of_2(n_prompts)
    narrow = image.element_size() == 2
    block_d = 128 if narrow else 32
    tiles = triton.cdiv(n_classes, classes) * triton.cdiv(width, block_d)
    gradient_kernel._text_gradient_kernel[(tiles,)](
        image,
        text,
        gram,
        inv_norm,
        weights,
        alpha,
        gamma,
        along,
        dtext,
        0 if along is None else len(along),
        *sizes,
        PRECISION=dot_precision(image.dtype),
        WIDEN=interpreted(),
        CLASSES=classes,
        ROWS=_ROWS,
        SLICE=_SLICE,
        BLOCK_B=_block(image, 32),
        BLOCK_D=block_d,
        num_stages=_stages(text),
        **_OPTIONS | {"num_warps": 8 if narrow else 4},
    )
