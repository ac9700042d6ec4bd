"""The reference towers: open_clip's own numbers, and all the work that published code does."""

from collections.abc import Iterator
from contextlib import contextmanager

import open_clip
import pytest
import torch
from helpers.engine_checks import (
    ARCHITECTURES,
    NAMES,
    TEMPLATES,
    architecture,
    counted_rows,
    noise,
    resblocks,
    text_clip,
)
from torch import Tensor, nn

from fastprompt._utils.attention import plain_attention
from fastprompt.towers import ReferenceImageTower, ReferenceTextTower

CUSTOM = open_clip.CustomTextCLIP
PLAIN_TEXT = [f"{name.replace('_', ' ')}." for name in NAMES]
GRAD_MODES = pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode]
)
TOWERS = {
    "clip-eos": {"pool_type": "eos", "eos_id": 49407},
    "clip-quickgelu": {"quick_gelu": True},
    "causal-last": {"layout": CUSTOM, "pool_type": "last"},
    "not-causal-first": {"layout": CUSTOM, "no_causal_mask": True, "pool_type": "first"},
    "padding-masked": {"layout": CUSTOM, "no_causal_mask": True, "pad_mask": True},
    "padding-masked-custom-blocks": {
        "layout": CUSTOM,
        "no_causal_mask": True,
        "pad_mask": True,
        "qk_norm": True,
    },
    "custom-no_projection": {"layout": CUSTOM, "proj_type": "none"},
}


def images(size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(3, 3, size, size, generator=generator).to(dtype)


@contextmanager
def inputs_of(block: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that a block was called with, call by call."""
    shapes: list[tuple[int, ...]] = []
    handle = block.register_forward_hook(lambda _, args, out: shapes.append(tuple(args[0].shape)))
    try:
        yield shapes
    finally:
        handle.remove()


# ---- open_clip's own numbers -------------------------------------------------------------------


@GRAD_MODES
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_without_context_is_encode_text_bit_for_bit(name, mode):
    clip = architecture(name)
    tower = ReferenceTextTower(clip, NAMES, 0)
    with mode(), plain_attention():
        expected = clip.model.encode_text(clip.tokenizer(PLAIN_TEXT))
        assert torch.equal(tower(torch.zeros(tower.context_shape)), expected)
    assert expected.norm() > 1e-3


@GRAD_MODES
@pytest.mark.parametrize("setting", TOWERS)
def test_text_settings_are_encode_text_bit_for_bit(setting, mode):
    clip = text_clip(**TOWERS[setting])
    tower = ReferenceTextTower(clip, NAMES, 0, n_prompts=2)
    with mode(), plain_attention():
        expected = clip.model.encode_text(clip.tokenizer(PLAIN_TEXT))
        assert torch.equal(tower(torch.zeros(2, 0, 24)), torch.stack([expected, expected]))


@GRAD_MODES
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_images_without_prompts_are_encode_image_bit_for_bit(name, mode):
    clip = architecture(name)
    pixels = images(clip.image_size, clip.dtype)
    with mode(), plain_attention():
        expected = clip.model.encode_image((pixels - clip.mean) / clip.std)
        tower = ReferenceImageTower(clip)
        assert torch.equal(tower(pixels), expected)
        # keeping the layers changes nothing
        assert torch.equal(tower(pixels, keep_layers=True)[0], expected)
    assert expected.norm() > 1e-3


def test_gradient_modes_give_the_same_bits():
    clip = architecture("vit-b-32")
    pixels = images(clip.image_size, clip.dtype)
    text, image = ReferenceTextTower(clip, NAMES, 3), ReferenceImageTower(clip)
    context = noise(3, 24)
    with torch.no_grad():
        before = text(context), image(pixels)
    after = text(context), image(pixels.requires_grad_())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(out.requires_grad for out in after)
    assert torch.backends.mha.get_fastpath_enabled()  # and the switch is back


def test_kept_layers_are_the_blocks_outputs():
    clip = architecture("vit-b-32")
    blocks = resblocks(clip.model.visual)
    outputs: list[Tensor] = []
    handles = [b.register_forward_hook(lambda _, args, out: outputs.append(out)) for b in blocks]
    pixels = images(clip.image_size, clip.dtype)
    _, kept = ReferenceImageTower(clip, (1,))(pixels, noise(1, 2, 32), keep_layers=True)
    for handle in handles:
        handle.remove()
    assert [tuple(k.shape) for k in kept] == [(3, 1 + 9, 32), (3, 1 + 9 + 2, 32), (3, 12, 32)]
    assert all(torch.equal(a, b) for a, b in zip(kept, outputs, strict=True))


# ---- all the work of published code ------------------------------------------------------------


@pytest.mark.parametrize("specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_class_at_full_length_in_every_layer(depth, position, specific):
    clip = text_clip()
    tower = ReferenceTextTower(
        clip, NAMES, 3, template=TEMPLATES[position], class_specific=specific
    )
    deep = noise(depth - 1, 3, 24) if depth > 1 else None
    rows_of_all = [77 * len(NAMES)] * 3
    with (
        inputs_of(resblocks(clip.model)[0]) as shapes,
        counted_rows(clip.model.transformer) as rows,
    ):
        tower(noise(*tower.context_shape), deep)
    assert shapes == [(len(NAMES), 77, 24)]
    assert rows == rows_of_all


def test_several_prompts_one_after_the_other():
    clip = text_clip()
    tower = ReferenceTextTower(clip, NAMES, 3, n_prompts=4)
    with inputs_of(resblocks(clip.model)[0]) as shapes:
        tower(noise(*tower.context_shape))
    assert shapes == [(len(NAMES), 77, 24)] * 4


def test_a_shorter_tokenizer_sets_the_length():
    clip = architecture("siglip-like")
    with inputs_of(resblocks(clip.model.text)[0]) as shapes:
        ReferenceTextTower(clip, NAMES, 3)(noise(3, 24))
    assert shapes == [(len(NAMES), 64, 24)]


def test_every_image_token_in_every_layer():
    clip = architecture("vit-b-32")
    with counted_rows(clip.model.visual.transformer) as rows:
        pixels = images(clip.image_size, clip.dtype)
        ReferenceImageTower(clip, (0, 1, 2))(pixels, noise(3, 2, 32))
    assert rows == [3 * (1 + 9 + 2)] * 3
