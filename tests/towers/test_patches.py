"""The patch embedding of blocks in bfloat16: its error against float64, and what it launches."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.fake_cuda import fake_cuda, no_waits
from torch import Tensor

from fastprompt.towers import ImageTower, patches
from fastprompt.towers.patches import halves_of, patches_bf16, product_of_halves

BF16, FP32 = torch.bfloat16, torch.float32
SIDES = {"side-8": 8, "side-7": 7}  # 147 pixels a patch: rows are padded
WIDTH, BATCH = 48, 3
ROUNDING = 2.0**-8  # of a value to bfloat16, at most
SPLIT = 3 * 2.0**-16  # of a product of halves: 2^-16 of each factor, and the part left out


@pytest.fixture(params=SIDES.values(), ids=SIDES)
def operands(request) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, weights and a bias, which is as large as CLIP's by the normalization of pixels."""
    side = request.param
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(BATCH, 3, 3 * side + 1, 2 * side, generator=generator)
    weight = 0.1 * torch.randn(WIDTH, 3, side, side, generator=generator)
    return images, weight, -0.5 * weight.sum((1, 2, 3))


@pytest.fixture(autouse=True)
def native(monkeypatch):
    monkeypatch.setattr(patches, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(patches, "_FEWEST_ON_CPU", 0)


def exact(images: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embedding in float64, and the sum of its terms' absolute values."""
    x, w, b = images.double(), weight.double(), bias.double()
    return patches.patches(x, w, b), patches.patches(x.abs(), w.abs(), b.abs())


def of_halves(images: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    halves = halves_of(weight, bias, BF16)
    seen: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        # the operands are in bfloat16 whatever they are multiplied in
        real = F.linear
        patch.setattr(F, "linear", lambda x, w: seen.append(x) or real(x.to(dtype), w.to(dtype)))
        out = product_of_halves(patches._rows(images, weight), halves)
    assert [x.dtype for x in seen] == [BF16]
    assert halves.shape[-1] % 8 == 0
    return out


def test_halves_lose_next_to_nothing(operands):
    wanted, terms = exact(*operands)
    got = of_halves(*operands, torch.float64)
    assert ((got - wanted).abs() <= SPLIT * terms).all()
    images, weight, bias = (x.bfloat16().double() for x in operands)
    plain = patches.patches(images, weight, bias)
    assert ((plain - wanted).abs() > SPLIT * terms).double().mean() > 0.5


@pytest.mark.parametrize("way", ["cpu", "gpu"])
def test_only_the_output_is_rounded(operands, way):
    images, weight, bias = operands
    halves = halves_of(weight, bias, BF16)
    if way == "gpu":
        got = product_of_halves(patches._rows(images, weight), halves)
    else:
        got = patches_bf16(*operands, halves)
        assert torch.equal(got, patches.patches(*operands).bfloat16())
    wanted, terms = exact(*operands)
    summed = halves.shape[-1] * 2.0**-24  # in float32
    limit = ROUNDING * wanted.abs() + (SPLIT + summed) * terms
    assert got.dtype == BF16
    assert ((got.double() - wanted).abs() <= limit).all()
    plain = patches.patches(*(x.bfloat16() for x in operands))
    assert ((plain.double() - wanted).abs() > limit).any()


def test_the_gradient_is_that_of_weights_in_bfloat16(operands):
    images, weight, bias = operands
    images.requires_grad_()
    out = patches_bf16(*operands, halves_of(weight, bias, BF16))
    given = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    (got,) = torch.autograd.grad(out, images, given)
    x = images.detach().double().requires_grad_()
    wide = patches.patches(x, weight.double(), bias.double())
    (wanted,) = torch.autograd.grad(wide, x, given.double(), retain_graph=True)
    size = patches.patches(x, weight.double().abs(), bias.double())
    (terms,) = torch.autograd.grad(size, x, given.double().abs())
    assert got.dtype == FP32
    # the weights and the result are rounded, the sum is in float32
    limit = ROUNDING * wanted.abs() + (ROUNDING + WIDTH * 2.0**-24) * terms
    assert ((got.double() - wanted).abs() <= 1.01 * limit).all()
    assert (got[..., -1, :] == 0).all()  # beyond the last whole patch


@pytest.mark.parametrize(
    ("weights", "blocks"),
    [(FP32, FP32), (torch.float64, torch.float64), (torch.float64, BF16), (FP32, torch.float16)],
    ids=str,
)
def test_other_precisions_are_as_they_were(weights, blocks, small_clip):
    clip = copy.deepcopy(small_clip).to(weights)
    tower = ImageTower(clip, dtype=blocks)
    assert tower.patch_halves is None
    images = torch.rand(2, 3, *[clip.image_size] * 2, dtype=weights, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("fastprompt.towers.image.patches_bf16")
        out = tower._embed(images)
    visual = tower.visual
    plain = patches.patches(images, tower.patch_weight, tower.patch_bias).to(blocks)
    first = visual.class_embedding.expand(2, 1, -1)
    plain = visual.ln_pre(torch.cat([first, plain], 1) + visual.positional_embedding)
    assert torch.equal(out, plain)
    grads = [torch.autograd.grad(each.double().sum(), images)[0] for each in (out, plain)]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("name", "value"),
    [("multiplies_bf16", lambda device: False), ("_FEWEST_ON_CPU", 10**6)],
    ids=["emulated", "small"],
)
def test_it_is_not_used_where_it_is_slower(name, value, small_clip, monkeypatch):
    assert ImageTower(small_clip, dtype=BF16).patch_halves is not None
    monkeypatch.setattr(patches, name, value)
    assert ImageTower(small_clip, dtype=BF16).patch_halves is None


def test_it_compiles_to_one_graph(operands):
    images, weight, bias = operands
    halves = halves_of(weight, bias, BF16)
    compiled = torch.compile(patches_bf16, backend="aot_eager", fullgraph=True)
    found = []
    for function in (patches_bf16, compiled):
        x = images.clone().requires_grad_()
        out = function(x, weight, bias, halves)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_gpu_multiplies_nothing_in_float32(operands):
    images, weight, bias = operands
    halves = halves_of(weight, bias, BF16)
    with fake_cuda() as put:
        x, *fixed = map(put, (images, weight, bias, halves))
        x.requires_grad_()
        with no_waits() as forward:
            out = patches_bf16(x, *fixed)
        given = torch.ones_like(out)
        with no_waits() as backward:
            torch.autograd.grad(out, x, given)
    # both halves of the pixels; from bfloat16, the gradient
    assert forward.casts.total() == 2
    assert backward.casts.total() == 1
    assert forward.launches["mm"] == backward.launches["mm"] == 1
    assert (forward.launches.total(), backward.launches.total()) == (7, 4)
