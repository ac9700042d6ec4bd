"""The fast image tower against the reference: features, and the gradients in what is learned."""

import copy
from functools import cache

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.engine_checks import (
    ARCHITECTURES,
    BLOCK_OPTIONS,
    EXACT,
    SINGLE,
    agree,
    architecture,
    counted_rows,
    frozen,
    no_work,
    noise,
    relative,
    resblocks,
)
from helpers.models import SMALL
from torch import Tensor, nn

from fastprompt import FrozenCLIP, load_clip
from fastprompt.towers import ImageTower, ReferenceImageTower
from fastprompt.towers.blocks import OpenBlock
from fastprompt.towers.patches import patches

DEPTH, WIDTH, PATCHES = 5, 32, 9
LAYERS = {
    "none": (),
    "first": (0,),
    "all": (0, 1, 2, 3, 4),
    "gap": (0, 2),
    "gaps": (0, 2, 4),
    "later": (2, 3),
    "last": (4,),
}
VISION = {
    "tok": {},
    "avg": {"pool_type": "avg"},
    "tok-ln_after_pool": {"final_ln_after_pool": True},
    "avg-ln_after_pool": {"pool_type": "avg", "final_ln_after_pool": True},
    "no_ln_pre": {"no_ln_pre": True},
    "sines": {"pos_embed_type": "sin_cos_2d"},
}


@cache
def image_clip(quick_gelu: bool = False, dtype: torch.dtype = torch.float64, **vision: object):
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= {"layers": DEPTH, **vision}
    torch.manual_seed(0)
    return frozen(open_clip.CLIP(**config, quick_gelu=quick_gelu).eval(), dtype=dtype)


def pixels(clip: FrozenCLIP, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    size = clip.image_size
    images = torch.rand(batch, 3, size, size, generator=generator, dtype=torch.float64)
    return images.to(clip.dtype).requires_grad_()


def make_refiners(clip: FrozenCLIP) -> nn.ModuleList:
    """Near the identity, as refiners start, but nothing in them is zero."""
    width, depth = clip.model.visual.conv1.out_channels, len(resblocks(clip.model.visual))
    out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1)).to(clip.dtype)
    with torch.no_grad():
        for i, refiner in enumerate(out):
            drawn = noise(width + 1, width, seed=10 + i, dtype=clip.dtype)
            refiner.weight.copy_(torch.eye(width) + 0.3 * drawn[1:])
            refiner.bias.copy_(0.3 * drawn[0])
    return out


def image_engines(
    clip: FrozenCLIP,
    layers: tuple[int, ...],
    *,
    refined: bool = False,
    keep: bool = False,
    tolerance: float = EXACT,
) -> None:
    """Compare both image towers, in all that they return."""
    width = clip.model.visual.conv1.out_channels
    images = pixels(clip)
    learnable = {"pixels": images}
    prompts, refiners = None, None
    if layers:
        prompts = noise(len(layers), 2, width, seed=5, dtype=clip.dtype)
        learnable["prompts"] = prompts
    if refined:
        refiners = make_refiners(clip)
        learnable |= dict(refiners.named_parameters())
    engines = []
    for tower in (ImageTower(clip, layers), ReferenceImageTower(clip, layers)):

        def run(tower=tower) -> Tensor:
            out = tower(images, prompts, refiners, keep_layers=keep)
            if not keep:
                return out
            features, kept = out
            assert len(kept) == len(resblocks(clip.model.visual))
            return torch.cat([features.flatten(), *(k.flatten() for k in kept)])

        engines.append(run)
    agree(engines, learnable, tolerance)


@pytest.mark.parametrize("refined", [False, True], ids=["plain", "refined"])
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)], ids=["all", "middle"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, layers, refined):
    image_engines(architecture(name), layers, refined=refined)


@pytest.mark.parametrize("keep", [False, True], ids=["features", "keep_layers"])
@pytest.mark.parametrize("refined", [False, True], ids=["plain", "refined"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_prompts_in_any_layers(pool, layers, refined, keep):
    image_engines(image_clip(pool_type=pool), LAYERS[layers], refined=refined, keep=keep)


@pytest.mark.parametrize("quick_gelu", [False, True], ids=["gelu", "quickgelu"])
@pytest.mark.parametrize("setting", VISION)
def test_pooling_and_norms(setting, quick_gelu):
    clip = image_clip(quick_gelu=quick_gelu, **VISION[setting])
    for keep in (False, True):
        image_engines(clip, (0, 2, 3), refined=True, keep=keep)


@pytest.mark.parametrize("option", BLOCK_OPTIONS)
def test_block_options(option):
    image_engines(image_clip(**BLOCK_OPTIONS[option]), (0, 2, 3), refined=True)


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_single_layer(pool):
    image_engines(image_clip(layers=1, pool_type=pool), (0,))


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("quick_gelu", [False, True], ids=["gelu", "quickgelu"])
def test_single_precision(quick_gelu, pool):
    clip = image_clip(quick_gelu=quick_gelu, dtype=torch.float32, pool_type=pool)
    image_engines(clip, (0, 1, 3), refined=True, tolerance=SINGLE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_single_precision_of_architectures(name):
    clip = copy.deepcopy(architecture(name)).float()
    image_engines(clip, (0, 1), refined=True, tolerance=SINGLE)


def test_pixels_beyond_the_last_whole_patch():
    clip = image_clip(image_size=50)
    seen = pixels(image_clip())
    towers = ImageTower(clip), ReferenceImageTower(clip)
    agree([lambda t=t: t(F.pad(seen, (0, 2, 0, 2))) for t in towers], {"pixels": seen}, EXACT)
    beyond = [t(F.pad(seen.detach(), (0, 2, 0, 2), value=1.0)) for t in towers]
    assert relative(beyond[0], towers[0](F.pad(seen, (0, 2, 0, 2)))) <= EXACT
    assert relative(*beyond) <= EXACT


def test_no_prompt_tokens_change_nothing():
    clip = image_clip()
    images = pixels(clip)
    none = torch.zeros(2, 0, WIDTH, dtype=torch.float64)
    assert relative(ImageTower(clip, (0, 2))(images, none), ImageTower(clip)(images)) <= EXACT


# ---- exact rewritings --------------------------------------------------------------------------


def test_the_patch_embedding_takes_in_the_normalization():
    clip = image_clip()
    images = pixels(clip)
    tower = ImageTower(clip)
    conv = clip.model.visual.conv1

    def plain() -> Tensor:
        return conv((images - clip.mean) / clip.std).flatten(2).transpose(1, 2)

    agree(
        [lambda: patches(images, tower.patch_weight, tower.patch_bias), plain],
        {"pixels": images},
        EXACT,
    )


def test_quick_gelu_by_silu():
    block = resblocks(image_clip(quick_gelu=True).model.visual)[0]
    assert type(block.mlp.gelu) is open_clip.transformer.QuickGELU
    x = noise(6, WIDTH, seed=3)
    agree([lambda: OpenBlock(block)._mlp(x), lambda: block.mlp(x)], {"x": x}, EXACT)


# ---- what is computed --------------------------------------------------------------------------

BATCH, PROMPTS = 3, 2
TOKENS = BATCH * (1 + PATCHES)
EXTRA = BATCH * PROMPTS


def rows_of(clip: FrozenCLIP, layers: tuple[int, ...], **options: object) -> list[int]:
    prompts = noise(len(layers), PROMPTS, WIDTH).detach() if layers else None
    tower = ImageTower(clip, layers)
    with counted_rows(clip.model.visual.transformer) as rows, torch.no_grad():
        tower(pixels(clip, BATCH), prompts, **options)
    return rows


@pytest.mark.parametrize(
    ("layers", "extra"),
    [
        ((), (0, 0, 0, 0)),
        ((0, 1, 2, 3, 4), (0, 0, 0, 0)),
        ((0,), (1, 1, 1, 1)),
        ((0, 2), (1, 0, 1, 1)),
        ((0, 1, 4), (0, 1, 1, 0)),
        ((2, 3), (0, 0, 0, 1)),
        ((4,), (0, 0, 0, 0)),
    ],
    ids=str,
)
def test_prompt_tokens_that_are_replaced_never_pass_the_mlp(layers, extra):
    expected = [TOKENS + EXTRA * there for there in extra]
    assert rows_of(image_clip(), layers) == [*expected, BATCH]
    # averaged are the patches alone
    assert rows_of(image_clip(pool_type="avg"), layers) == [*expected, BATCH * PATCHES]


def test_keeping_the_layers_computes_every_token():
    rows = rows_of(image_clip(), (0, 2), keep_layers=True)
    assert rows == [TOKENS + EXTRA] * DEPTH


def test_prompt_tokens_are_projected_once_for_the_batch():
    clip = image_clip()
    seen = []
    norm = resblocks(clip.model.visual)[1].ln_1
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel() // WIDTH))
    ImageTower(clip, (0, 1, 2))(pixels(clip, BATCH), noise(3, PROMPTS, WIDTH))
    handle.remove()
    assert seen == [PROMPTS, TOKENS]


# ---- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_bfloat16_is_a_copy_and_as_near_as_a_plain_one(pool):
    clip = image_clip(dtype=torch.float32, pool_type=pool)
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    images = pixels(clip, 8).detach()
    prompts = noise(2, PROMPTS, WIDTH, seed=5, dtype=torch.float32).detach()
    tower = ImageTower(clip, (0, 2), dtype=torch.bfloat16)
    exact = ReferenceImageTower(clip, (0, 2))(images, prompts)
    got = tower(images, prompts)
    after = clip.model.state_dict()
    assert all(
        torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in after
    )
    assert got.dtype == torch.bfloat16
    assert tower.patch_weight.dtype == torch.float32
    plain = ReferenceImageTower(copy.deepcopy(clip).to(torch.bfloat16), (0, 2))
    budget = relative(plain(images, prompts).float(), exact)
    assert budget > 1e-4  # bfloat16 was there at all
    assert relative(got.float(), exact) <= 2 * budget


def test_bfloat16_gives_pixels_their_gradient_in_their_own_precision():
    clip = image_clip(dtype=torch.float32)
    images = pixels(clip)
    (grad,) = torch.autograd.grad(ImageTower(clip, dtype=torch.bfloat16)(images).sum(), images)
    (exact,) = torch.autograd.grad(ReferenceImageTower(clip)(images).sum(), images)
    assert grad.dtype == torch.float32
    plain = ReferenceImageTower(copy.deepcopy(clip).to(torch.bfloat16))
    (low,) = torch.autograd.grad(plain(images).float().sum(), images)
    assert relative(grad, exact) <= 2 * relative(low, exact)


def test_the_weights_own_dtype_makes_no_copy():
    clip = image_clip(dtype=torch.float32)
    assert ImageTower(clip).visual is clip.model.visual
    assert ImageTower(clip, dtype=torch.float32).visual is clip.model.visual


@pytest.mark.parametrize("change", ["cast", "load", "load through a parent"])
@pytest.mark.parametrize("copied", [None, torch.bfloat16], ids=["own-dtype", "bfloat16-copy"])
def test_the_tower_follows_its_models_weights(copied, change):
    clip = copy.deepcopy(image_clip(dtype=torch.float32 if change == "cast" else torch.float64))
    tower = ImageTower(clip, dtype=copied)
    images = pixels(clip).detach().to(clip.dtype)
    before = tower(images)
    if change == "cast":
        clip.double()
        images = images.double()
    else:
        state = {k: v + 0.1 for k, v in clip.state_dict().items()}
        if change == "load":
            clip.load_state_dict(state)
        else:
            parent = torch.nn.ModuleList([clip])
            parent.load_state_dict({f"0.{k}": v for k, v in state.items()})
    got, expected = tower(images), ReferenceImageTower(clip)(images)
    assert got.dtype == (copied or clip.dtype)
    assert relative(got, ImageTower(clip, dtype=copied)(images)) == 0
    tolerance = 0.1 if copied else EXACT
    assert relative(got.to(expected.dtype), expected) <= tolerance
    if change != "cast":
        assert relative(got, before) > tolerance


def test_models_that_compute_their_layer_norms_in_float32_can_be_copied():
    model = open_clip.CLIP(**copy.deepcopy(SMALL), cast_dtype=torch.bfloat16).eval()
    clip = load_clip(model)
    assert any(type(m).__name__ == "LayerNormFp32" for m in clip.modules())
    images = pixels(clip).detach().float()
    low = ImageTower(clip, dtype=torch.bfloat16)(images)
    assert low.dtype == torch.bfloat16
    assert relative(low.float(), ImageTower(clip)(images)) <= 0.1


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [ImageTower, ReferenceImageTower])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((1, 0), r"^layers .*\[1, 0\]"),
        ((0, 0), r"^layers .*\[0, 0\]"),
        ((0, 5), r"^layers .*0\.\.4.*image tower.*\[0, 5\].*depth"),
        ((-1, 2), r"^layers .*0\.\.4.*\[-1, 2\].*depth"),
    ],
    ids=["falling", "twice", "too-deep", "negative"],
)
def test_layers_that_the_tower_lacks(engine, layers, message):
    clip = image_clip()
    with no_work(clip), pytest.raises(ValueError, match=message):
        engine(clip, layers)


@pytest.mark.parametrize("engine", [ImageTower, ReferenceImageTower])
@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ((0, 2), None, r"^prompts .*\[2, V, 32\].*None"),
        ((0, 2), (3, 2, 32), r"^prompts .*\[2, V, 32\].*\[3, 2, 32\]"),
        ((0, 2), (2, 2, 24), r"^prompts .*\[2, V, 32\].*\[2, 2, 24\]"),
        ((0, 2), (2, 32), r"^prompts .*\[2, V, 32\].*\[2, 32\]"),
        ((), (1, 2, 32), r"^prompts .*\[0, V, 32\].*\[1, 2, 32\]"),
    ],
    ids=["missing", "too-many", "width", "no-tokens-dimension", "no-layers"],
)
def test_prompts_of_another_shape(engine, layers, shape, message):
    clip = image_clip()
    tower = engine(clip, layers)
    prompts = None if shape is None else torch.zeros(shape, dtype=torch.float64)
    with no_work(clip), pytest.raises(ValueError, match=message):
        tower(pixels(clip), prompts)


@pytest.mark.parametrize("engine", [ImageTower, ReferenceImageTower])
def test_too_many_refiners(engine):
    clip = image_clip()
    tower = engine(clip)
    with no_work(clip), pytest.raises(ValueError, match=f"^refiners .*{DEPTH - 1}.*{DEPTH}"):
        tower(pixels(clip), None, [nn.Identity()] * DEPTH)


@pytest.mark.parametrize("engine", [ImageTower, ReferenceImageTower])
def test_refiners_precede_the_blocks_after_the_first(engine):
    """As many as there are: NAP has none before a block without prompts."""
    clip, seen = image_clip(), []
    refiners = [nn.Identity() for _ in range(2)]
    for i, refiner in enumerate(refiners):
        refiner.register_forward_hook(lambda *_, i=i: seen.append(i))
    tower = engine(clip)
    plain = tower(pixels(clip), None, None)
    assert torch.equal(tower(pixels(clip), None, refiners), plain)
    assert seen == [0, 1]


@pytest.mark.parametrize("engine", [ImageTower, ReferenceImageTower])
def test_images_of_another_size(engine):
    clip = image_clip()
    tower = engine(clip)
    with no_work(clip), pytest.raises(ValueError, match=r"^images .*\[B, 3, 48, 48\]"):
        tower(torch.zeros(1, 3, 32, 32))


OTHER_TOWERS = {
    "resnet": ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 48}, "ModifiedResNet"),
    "timm": ({"timm_model_name": "resnet18", "image_size": 48}, "TimmModel"),
    "attentional-pool": (
        {**SMALL["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2},
        "pools.*attention",
    ),
    "scaled-cosine": ({**SMALL["vision_cfg"], "scaled_cosine_attn": True}, "scaled cosine"),
}


@pytest.mark.parametrize("tower", OTHER_TOWERS)
def test_other_image_towers_take_no_prompts(tower):
    vision, message = OTHER_TOWERS[tower]
    clip = load_clip(open_clip.CLIP(**{**SMALL, "vision_cfg": vision}))
    for engine in (ImageTower, ReferenceImageTower):
        with pytest.raises(ValueError, match=f"^clip: .*visual.*{message}"):
            engine(clip, (0,))
