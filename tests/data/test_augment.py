"""Random crops: their distribution is torchvision's, their pixels too, and nothing else counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from fastprompt.data.augment import RandomCrops

WHOLE = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])


def noise(n: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images on which a pixel's shift by little shows."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64).to(dtype)


def whole_pixels(n: int, side: int) -> Tensor:
    """Boxes ``top, left, height, width`` in pixels, int64 ``[n, 4]``; the first are the edges."""
    generator = torch.Generator().manual_seed(4)
    edges = [[0, 0, side, side], [0, 0, 1, 1], [side - 1, side - 2, 1, 2], [0, 3, side, 2]]
    boxes = [torch.tensor(edge) for edge in edges]
    for _ in range(n - len(edges)):
        height, width = torch.randint(1, side + 1, (2,), generator=generator).tolist()
        top = int(torch.randint(0, side - height + 1, (1,), generator=generator))
        left = int(torch.randint(0, side - width + 1, (1,), generator=generator))
        boxes.append(torch.tensor([top, left, height, width]))
    return torch.stack(boxes)


def as_boxes(pixels: Tensor, side: int, dtype: torch.dtype, flip: int = 0) -> Tensor:
    shares = pixels.to(torch.float64) / side
    return torch.cat([shares, torch.full((len(pixels), 1), flip)], dim=1).to(dtype)


# ---- what is cut out ------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 48, 63, 224])
def test_the_whole_image_comes_back(side):
    x = noise(2, side)
    given = x.clone()
    out = RandomCrops()(x, WHOLE.expand(2, 5))
    torch.testing.assert_close(out, x, rtol=0, atol=1e-6)
    assert out.data_ptr() != x.data_ptr()
    assert torch.equal(x, given)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("side", [9, 48])
def test_boxes_of_whole_pixels_are_torchvisions_resized_crop(side, dtype, atol):
    """Also at the crop's edges: resizing a crop that was cut out can't see its neighbors."""
    pixels = whole_pixels(30, side)
    x = noise(len(pixels), side, dtype)
    ours = RandomCrops()(x, as_boxes(pixels, side, dtype))
    theirs = torch.stack(
        [
            resized_crop(image, *box, [side, side], antialias=False)
            for image, box in zip(x, pixels.tolist(), strict=True)
        ]
    )
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_images_that_are_not_square_are_cropped_by_fractions_of_their_sides():
    pixels = whole_pixels(30, 24)
    x = noise(len(pixels), 48, torch.float64)[:, :1, :24]
    boxes = as_boxes(pixels, 24, torch.float64)
    doubled = pixels * torch.tensor([1, 2, 1, 2])  # the width is twice the height
    theirs = [
        resized_crop(image, *box, [24, 48], antialias=False)
        for image, box in zip(x, doubled.tolist(), strict=True)
    ]
    torch.testing.assert_close(RandomCrops()(x, boxes), torch.stack(theirs), rtol=0, atol=1e-10)


def test_other_boxes_are_grid_sample_inside_the_crop():
    """An independent spelling: coordinates in [-1, 1], kept half a pixel inside the box."""
    side, boxes = 17, RandomCrops(scale=(0.05, 1.0), seed=2).draw(40, 0).double()
    x = noise(40, side, torch.float64)
    top, left, height, width, flip = boxes.unbind(1)
    nil, sign = torch.zeros_like(top), 1 - 2 * flip
    theta = torch.stack(
        [
            torch.stack([sign * width, nil, 2 * left + width - 1], 1),
            torch.stack([nil, height, 2 * top + height - 1], 1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    low = torch.stack([left, top], 1)[:, None, None] * 2 - 1 + 1 / side
    high = torch.stack([left + width, top + height], 1)[:, None, None] * 2 - 1 - 1 / side
    grid = grid.clamp(low, high)
    wanted = F.grid_sample(x, grid, align_corners=False, padding_mode="border")
    torch.testing.assert_close(RandomCrops()(x, boxes), wanted, rtol=0, atol=1e-10)


def test_a_box_of_less_than_a_pixel_is_its_middle():
    x = noise(1, 8, torch.float64)
    box = torch.tensor([[3.4 / 8, 5.0 / 8, 0.2 / 8, 0.9 / 8, 0.0]], dtype=torch.float64)
    out = RandomCrops()(x, box)
    # center (3.5, 5.45): on row 3's center, 0.05 before column 5's
    wanted = 0.95 * x[0, :, 3, 5] + 0.05 * x[0, :, 3, 4]
    expected = wanted[None, :, None, None].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("side", [1, 2])
def test_boxes_of_less_than_a_pixel_at_the_edge(side):
    x, crops = noise(50, side), RandomCrops((0.001, 0.002))
    boxes = crops.draw(50, 0)
    boxes[::2, :2] = 0.0  # in the corner
    boxes[1::2, :2] = 1 - boxes[1::2, 2:4]
    out = crops(x, boxes)
    assert torch.equal(out[::2], x[::2, :, :1, :1].expand_as(out[::2]))
    assert torch.equal(out[1::2], x[1::2, :, -1:, -1:].expand_as(out[1::2]))


def test_a_flip_mirrors_the_crop():
    x = noise(6, 20)
    boxes = RandomCrops(flip=False, seed=1).draw(6, 0)
    mirrored = boxes.clone()
    mirrored[::2, 4] = 1
    crops = RandomCrops()
    plain, out = crops(x, boxes), crops(x, mirrored)
    assert torch.equal(out[::2], torch.flip(plain[::2], dims=[3]))
    assert torch.equal(out[1::2], plain[1::2])
    whole = WHOLE.clone()
    whole[4] = 1
    assert torch.equal(crops(x, whole.expand(6, 5)), torch.flip(x, dims=[3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_stay_in_the_box(dtype):
    x = noise(200, 24, dtype)
    x[:100] = x[:100].round()  # black and white
    x[100:] = 1 - 1e-6 * x[100:]  # few floats away from the edge
    out = RandomCrops()(x, RandomCrops().draw(200, 0))
    assert out.dtype == dtype
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert ((out[:100] > 0) & (out[:100] < 1)).any()
    assert (out[100:] > 0.99).all()


def test_memory_format_changes_nothing():
    x, crops = noise(5, 24), RandomCrops()
    boxes = crops.draw(5, 0)
    assert torch.equal(crops(x.to(memory_format=torch.channels_last), boxes), crops(x, boxes))
    wide = torch.zeros(5, 10)
    wide[:, ::2] = boxes
    assert torch.equal(crops(x, wide[:, ::2]), crops(x, boxes))


def test_no_images_give_none():
    crops = RandomCrops()
    assert crops.draw(0, 0).shape == (0, 5)
    assert crops(torch.empty(0, 3, 8, 8), crops.draw(0, 0)).shape == (0, 3, 8, 8)


def test_nothing_looks_at_a_value():
    """On a device without values: what waits for the device fails there."""
    x, boxes = torch.empty(3, 3, 8, 8, device="meta"), torch.empty(3, 5, device="meta")
    assert RandomCrops()(x, boxes).shape == x.shape


@pytest.mark.gpu
def test_a_gpu_crops_alike_and_is_not_waited_for():
    x, crops = noise(16, 48), RandomCrops()
    boxes = crops.draw(16, 0)
    on_device, its_boxes = x.cuda(), boxes.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = crops(on_device, its_boxes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), crops(x, boxes), rtol=0, atol=1e-5)


# ---- what is drawn --------------------------------------------------------------------------


def quantiles(values: Tensor) -> Tensor:
    return values.double().quantile(torch.linspace(0.02, 0.98, 25, dtype=torch.float64))


# the second often needs several tries; the third never fits, and the middle is cut
@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 1.0), (0.2, 1.2)), ((0.9, 1.0), (2.0, 3.0))],
)
def test_boxes_are_distributed_as_torchvisions(scale, ratio):
    """Quantiles of samples of 20,000 differ by up to 0.018 of their range (240 pairs).

    Those of 12,000 differ by sqrt(20 / 12) times as much, 0.023.
    """
    n, side = 12_000, 100_000
    image = torch.empty(1).expand(3, side, side)  # large: whole pixels are small there
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)]
    theirs = torch.tensor(drawn, dtype=torch.float64) / side
    ours = RandomCrops(scale, ratio).draw(n, 0)[:, :4].double()
    for name, of in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "area": lambda b: b[:, 2] * b[:, 3],
        "log ratio": lambda b: (b[:, 3] / b[:, 2]).log(),
        "place": lambda b: b[:, 0] / (1 - b[:, 2]).clamp(min=1e-4),
    }.items():
        first, second = of(ours), of(theirs)
        span = max(float(second.max() - second.min()), 1e-3)
        gap = (quantiles(first) - quantiles(second)).abs().max() / span
        assert gap < 0.025, name


def test_areas_and_log_ratios_are_uniform_where_every_crop_fits():
    low, high = 0.1, 0.5
    boxes = RandomCrops((low, high), (0.5, 2.0)).draw(40_000, 0).double()
    height, width = boxes[:, 2], boxes[:, 3]
    steps = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    areas, logs = quantiles(height * width), quantiles((width / height).log())
    torch.testing.assert_close(areas, low + (high - low) * steps, rtol=0, atol=0.01)
    wanted = math.log(0.5) + steps * math.log(4)
    torch.testing.assert_close(logs, wanted, rtol=0, atol=0.025)


def test_boxes_lie_inside_the_image_and_keep_the_bounds():
    boxes = RandomCrops().draw(50_000, 0).double()
    top, left, height, width, flip = boxes.unbind(1)
    for start, length in ((top, height), (left, width)):
        assert start.min() >= 0
        assert length.min() > 0
        assert (start + length).max() <= 1 + 1e-7  # float32
    area, ratio = height * width, width / height
    assert area.min() >= 0.08 - 1e-6
    assert area.max() <= 1 + 1e-6
    assert ratio.min() >= 3 / 4 - 1e-6
    assert ratio.max() <= 4 / 3 + 1e-6
    assert set(flip.tolist()) == {0.0, 1.0}
    assert abs(float(flip.mean()) - 0.5) < 0.01
    # nothing goes with the flip: left and right half alike
    assert abs(float(left[flip > 0].mean() - left[flip == 0].mean())) < 0.01


@pytest.mark.parametrize(
    ("ratio", "box"),
    [((2.0, 4.0), [0.25, 0, 0.5, 1]), ((0.2, 0.5), [0, 0.25, 1, 0.5]), ((0.1, 8), [0, 0, 1, 1])],
)
def test_where_no_crop_fits_the_middle_is_taken(ratio, box):
    boxes = RandomCrops((1.0, 1.0), ratio).draw(500, 0)
    assert (boxes[:, :4] == torch.tensor(box, dtype=torch.float32)).all(dim=1).float().mean() > 0.99


def test_fixed_size_and_shape():
    boxes = RandomCrops((0.25, 0.25), (1.0, 1.0)).draw(100, 0)
    torch.testing.assert_close(boxes[:, 2:4], torch.full((100, 2), 0.5))
    whole = RandomCrops((1.0, 1.0), (1.0, 1.0), flip=False).draw(100, 0)
    assert torch.equal(whole, WHOLE.expand(100, 5))


# ---- what it depends on ---------------------------------------------------------------------


def test_seed_and_epoch_key_the_boxes():
    wanted = RandomCrops(seed=1).draw(50, 2)
    assert wanted.dtype == torch.float32
    assert wanted.device.type == "cpu"
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(RandomCrops(seed=1).draw(50, 2), wanted)
    assert torch.equal(torch.get_rng_state(), state)  # the user's own random numbers
    # also where the sum, or seed * 1,000,003 + epoch, is the same
    for seed, epoch in ((1, 3), (2, 2), (2, 1), (0, 1_000_005), (1, 2 + 2**32)):
        assert (RandomCrops(seed=seed).draw(50, epoch)[:, :4] != wanted[:, :4]).all()


def test_boxes_are_not_the_numbers_that_order_the_images():
    """The loop's permutation has a generator of its own, seeded by the same two numbers."""
    uniform = torch.rand(8, generator=torch.Generator().manual_seed(3 * 1_000_003 + 4))
    drawn = RandomCrops((0.5, 0.5), (1.0, 1.0), seed=3).draw(8, 4)
    assert not torch.isclose(drawn[:, :2, None], (1 - 0.5**0.5) * uniform).any()


def test_an_images_crop_does_not_depend_on_how_many_there_are():
    whole = RandomCrops(seed=3).draw(70_000, 1)  # more than are drawn at once
    for n in (1, 7, 15, 16, 999, 66_000):
        assert torch.equal(RandomCrops(seed=3).draw(n, 1), whole[:n])


def test_flips_are_a_matter_of_their_own():
    plain = RandomCrops(flip=False).draw(200, 0)
    assert torch.equal(RandomCrops().draw(200, 0)[:, :4], plain[:, :4])
    assert not plain[:, 4].any()


def test_splitting_a_batch_changes_nothing():
    x, crops = noise(7, 31), RandomCrops(seed=4)
    boxes = crops.draw(7, 0)
    whole = crops(x, boxes)
    for rows in ([0], [1, 2], [6, 3, 3], [4, 5, 6, 0, 1]):
        assert torch.equal(crops(x[rows], boxes[rows]), whole[rows])


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": (0.0, 1.0)}, ValueError, r"^scale .*0\.0"),
        ({"scale": (0.5, 1.5)}, ValueError, r"^scale .*\(0.5, 1.5\)"),
        ({"scale": (0.5, 0.2)}, ValueError, "^scale .*low <= high"),
        ({"scale": 0.5}, TypeError, r"^scale .*\(low, high\).* 0.5"),
        ({"scale": (0.1, 0.5, 1.0)}, TypeError, r"^scale .*\(0.1, 0.5, 1.0\)"),
        ({"scale": (0.1, math.nan)}, ValueError, "^scale .*nan"),
        ({"ratio": (-1, 1)}, ValueError, "^ratio .*-1"),
        ({"ratio": (4 / 3, 3 / 4)}, ValueError, "^ratio .*low <= high"),
        ({"ratio": ("3/4", 1)}, TypeError, "^ratio .*'3/4'"),
        ({"flip": 0.5}, TypeError, "^flip .*0.5"),
        ({"seed": -1}, ValueError, "^seed .*-1"),
        ({"seed": 2**32}, ValueError, r"^seed .*2\*\*32"),
        ({"seed": 0.0}, TypeError, "^seed .*0.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        RandomCrops(**options)


@pytest.mark.parametrize(
    ("x", "boxes", "error", "message"),
    [
        (noise(2, 8)[0], WHOLE.expand(2, 5), ValueError, r"^images .*\[B, C, H, W\]"),
        (noise(2, 8).byte(), WHOLE.expand(2, 5), TypeError, "^images .*255"),
        (noise(2, 8), WHOLE.expand(3, 5), ValueError, r"^boxes .*\[2, 5\].*\[3, 5\]"),
        (noise(2, 8), WHOLE[:4].expand(2, 4), ValueError, r"^boxes .*\[2, 5\].*\[2, 4\]"),
        (noise(2, 8), WHOLE.long().expand(2, 5), ValueError, "^boxes .*torch.int64"),
        (noise(2, 8), torch.empty(2, 5, device="meta"), ValueError, "^boxes .*cpu.*meta"),
    ],
)
def test_images_and_boxes_that_do_not_fit_are_refused(x, boxes, error, message):
    with pytest.raises(error, match=message):
        RandomCrops()(x, boxes)


@pytest.mark.parametrize(
    ("n", "epoch", "error"), [(-1, 0, ValueError), (2.0, 0, TypeError), (1, -1, ValueError)]
)
def test_draws_out_of_range_are_refused(n, epoch, error):
    with pytest.raises(error, match=r"^(n|epoch) .*(-1|2\.0)"):
        RandomCrops().draw(n, epoch)
