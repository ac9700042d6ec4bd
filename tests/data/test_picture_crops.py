"""Exact crops: torchvision's bits from the original pictures; nothing but the draw counts."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coop_trees import CUT, caltech
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToTensor,
)

from fastprompt import load_data
from fastprompt.data import ImageTensors, picture_crops
from fastprompt.data.augment import RandomCrops
from fastprompt.data.dataset import original
from fastprompt.data.decode import decode
from fastprompt.data.picture_crops import PictureCrops
from fastprompt.data.splits import Form, TorchvisionImages

CPU = torch.device("cpu")
SIDE = 32
ORDER = torch.tensor([7, 0, 3, 3, 5, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An image folder of two classes, of pictures of every shape and mode."""
    root, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("ant", "bee"):
        (root / name).mkdir()
        for i, (height, width) in enumerate(
            [(40, 70), (70, 40), (32, 32), (1, 1), (300, 9), (9, 300), (3, 5), (200, 260)]
        ):
            picture = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
            kind = (name, i)
            if kind == ("bee", 0):
                picture = picture.convert("L")
            elif kind == ("bee", 1):
                picture = picture.quantize(32)
            elif kind == ("bee", 2):
                picture.putalpha(100)
            more = {"exif": exif} if kind == ("bee", 7) else {}
            picture.save(root / name / f"{i}.png", **more)
    return root


def torchvisions(picture: Image.Image, box, side=SIDE) -> Tensor:
    """Dassl's transforms with a given box: ``top, left, height, width`` and whether to flip."""
    *place, flip = box
    crop = RandomResizedCrop(side, interpolation=InterpolationMode.BICUBIC)
    crop.get_params = lambda *_: place  # type: ignore[method-assign]
    return Compose([crop, RandomHorizontalFlip(float(flip)), ToTensor()])(picture)


def read(data, order=ORDER, batch=4, epoch=1, **options) -> tuple[Tensor, Tensor, Tensor]:
    crops = options.pop("crops", RandomCrops(seed=3))
    cut = PictureCrops(data, CPU, crops, progress=False, **options)
    return tuple(torch.cat(part) for part in zip(*cut.batches(order, batch, epoch), strict=True))


# ---- pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_crops_have_the_bits_of_torchvision(folder, seed):
    data = load_data(folder, image_size=SIDE).train
    crops, order = RandomCrops(seed=seed), torch.arange(len(data)).flip(0)
    rows, images, labels = read(data, order, crops=crops)
    numbers = crops.numbers(len(data), 1)
    flips = 0
    for row, image, label in zip(rows.tolist(), images, labels.tolist(), strict=True):
        file = data.data.files[data.rows[row]]
        picture = decode(file)
        box = crops.pixel_box(numbers[row].tolist(), picture.height, picture.width)
        assert torch.equal(image, torchvisions(picture, box)), file.name
        assert label == data[row][1]
        flips += box[-1]
    assert 0 < flips < len(data)
    assert torch.equal(rows, order)
    assert images.dtype == torch.float32
    assert images.is_contiguous()


def test_pictures_of_coop_are_cropped_as_stored():
    """Dassl opens a picture and converts it to RGB."""
    data = load_data("coop:Caltech101", root=CUT, shots=1, seed=1, image_size=SIDE, classes="base")
    crops = RandomCrops(seed=1)
    _, images, _ = read(data.train, torch.arange(20), crops=crops, epoch=0)
    numbers = crops.numbers(20, 0)
    for row, image in enumerate(images):
        inner = data.train.data
        with Image.open(inner.files[data.train.rows[row]]) as picture:
            box = crops.pixel_box(numbers[row].tolist(), picture.height, picture.width)
            assert torch.equal(image, torchvisions(picture.convert("RGB"), box))


def test_sides_and_channels_are_those_of_the_images(folder):
    data = load_data(folder, image_size=(20, 30), channels=1).train
    crops = RandomCrops(seed=2)
    rows, images, _ = read(data, crops=crops)
    assert images.shape == (6, 1, 20, 30)
    picture = decode(data.data.files[data.rows[3]]).convert("L")
    box = crops.pixel_box(crops.numbers(len(data), 1)[3].tolist(), picture.height, picture.width)
    assert torch.equal(images[rows == 3][0], torchvisions(picture, box, (20, 30)))


def test_images_without_pictures_are_cropped_themselves():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (9, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    data, crops = ImageTensors(images, torch.arange(9)), RandomCrops(seed=4)
    rows, cut, labels = read(data, crops=crops)
    for row, image in zip(rows.tolist(), cut, strict=True):
        picture = Image.fromarray(images[row].movedim(0, -1).numpy())
        box = crops.pixel_box(crops.numbers(9, 1)[row].tolist(), SIDE, SIDE)
        assert torch.equal(image, torchvisions(picture, box))
    assert torch.equal(labels, rows)
    gray = ImageTensors(images[:, :1], torch.arange(9))
    assert original(gray, 2)[0].mode == "L"
    assert read(gray)[1].shape == (6, 1, SIDE, SIDE)


def test_torchvisions_data_sets_have_their_pictures():
    pictures = [(Image.new("RGB", (50, 20 + i)), i) for i in range(4)]
    data = TorchvisionImages(pictures, [2, 0], Form(SIDE), "")
    picture, label = original(data, 0)
    assert (picture.size, label, data[0][0].shape) == ((50, 22), 2, (3, SIDE, SIDE))


# ---- boxes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 1.0), (0.2, 1.2)), ((0.9, 1.0), (2.0, 3.0))],
)
@pytest.mark.parametrize("size", [(37, 91), (300, 200)])
def test_boxes_are_distributed_as_torchvisions(scale, ratio, size):
    n, (height, width) = 8_000, size
    torch.manual_seed(0)
    image = torch.empty(1).expand(3, height, width)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)]
    theirs = torch.tensor(drawn, dtype=torch.float64)
    crops = RandomCrops(scale, ratio)
    boxes = [crops.pixel_box(row, height, width) for row in crops.numbers(n, 0).tolist()]
    ours = torch.tensor(boxes, dtype=torch.float64)
    shares = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    for side in range(4):
        first, second = ours[:, side], theirs[:, side]
        gap = (first.quantile(shares) - second.quantile(shares)).abs().max()
        # as in test_augment.py, for this n; and rounding to whole pixels
        assert gap <= 1 + 0.03 * float(second.max() - second.min())
        assert first.min() >= (0 if side < 2 else 1)
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width
    assert abs(float(ours[:, 4].mean()) - 0.5) < 0.02


@pytest.mark.parametrize("size", [(100, 10), (10, 100), (50, 50), (1, 1), (1, 40)])
def test_where_no_box_fits_it_is_torchvisions_central_one(size):
    ratio = (0.9, 1.1) if size != (50, 50) else (4.0, 5.0)
    crops, (height, width) = RandomCrops((1.0, 1.0), ratio), size
    image = torch.empty(3, height, width)
    wanted = RandomResizedCrop.get_params(image, [1.0, 1.0], list(ratio))
    box = crops.pixel_box(crops.numbers(1, 0)[0].tolist(), height, width)
    assert box[:4] == tuple(wanted)


def test_boxes_of_large_square_pictures_are_those_of_the_device():
    crops, side, n = RandomCrops(seed=5), 10**6, 500
    fast = crops.draw(n, 3)
    numbers = crops.numbers(n, 3)
    assert numbers.shape == (n, 23)
    assert torch.equal(numbers[:40], crops.numbers(40, 3))
    for row, wanted in zip(numbers.tolist(), fast.tolist(), strict=True):
        box = crops.pixel_box(row, side, side)
        assert [x / side for x in box[:4]] == pytest.approx(wanted[:4], abs=2 / side)
        assert box[4] == bool(wanted[4])


def test_the_last_number_below_one_stays_inside():
    crops, last = RandomCrops(), 1 - 2**-53
    for side in range(1, 400):
        top, left, height, width, _ = crops.pixel_box([0.0] * 20 + [last] * 3, side, side)
        assert (top + height, left + width) == (side, side)


# ---- what the result depends on ----------------------------------------------------------------


def test_only_seed_epoch_and_row_count(folder):
    data = load_data(folder, image_size=SIDE).train
    wanted = read(data)
    bytes_of_three = sum(decode(data.data.files[row]).size[0] for row in data.rows[:3])
    for options in (
        {"batch": 1},
        {"batch": 6},
        {"threads": 1},
        {"threads": 5},
        {"budget": 0},
        {"budget": 40 * bytes_of_three},
    ):
        assert all(map(torch.equal, read(data, **options), wanted)), options
    for other in (read(data, epoch=2), read(data, crops=RandomCrops(seed=4))):
        assert torch.equal(other[0], wanted[0])
        assert not torch.equal(other[1], wanted[1])


def test_pictures_that_fit_are_decoded_once(folder, monkeypatch):
    data = load_data(folder, image_size=SIDE).train
    files = [data.data.files[row] for row in data.rows]
    read_files, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_files.append(path) or real(path))
    whole = PictureCrops(data, CPU, RandomCrops(), progress=False)
    assert whole.resident
    read_files.clear()
    list(whole.batches(ORDER, 2, 0))
    assert read_files == []
    sizes = [3 * decode(file).width * decode(file).height for file in files]
    part = PictureCrops(data, CPU, RandomCrops(), progress=False, budget=sum(sizes[:4]))
    assert not part.resident
    assert sum(pixels.nbytes for pixels, _ in part._kept) == sum(sizes[:4])
    read_files.clear()
    list(part.batches(torch.arange(len(data)), 2, 0))
    assert sorted(read_files) == sorted(files[4:])


def test_a_quarter_of_the_hosts_memory_by_default(folder, monkeypatch):
    data = load_data(folder, image_size=SIDE).train
    for memory, resident in ((2**40, True), (400, False)):
        monkeypatch.setattr(picture_crops, "total_memory", lambda device, m=memory: m)
        assert PictureCrops(data, CPU, RandomCrops(), progress=False).resident is resident


class Watched:
    """A data set of the user's that tells which threads read it at once."""

    def __init__(self) -> None:
        self.inside, self.most = 0, 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        for _ in range(100):
            threading.Event().wait(0)
        self.inside -= 1
        return torch.full((3, 8, 8), index, dtype=torch.uint8), index


def test_other_data_sets_are_read_by_one_thread_at_a_time():
    data = Watched()
    _, images, labels = read(data, torch.arange(12), budget=0, threads=4)
    assert data.most == 1
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_an_epoch_may_be_left_early(folder):
    data = load_data(folder, image_size=SIDE).train
    before = threading.active_count()
    batches = PictureCrops(data, CPU, RandomCrops(), progress=False).batches(ORDER, 1, 0)
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert (
        list(PictureCrops(data, CPU, RandomCrops(), progress=False).batches(ORDER[:0], 1, 0)) == []
    )


# ---- what goes wrong ---------------------------------------------------------------------------


def test_what_cannot_be_read_is_told(folder, tmp_path):
    data = load_data(folder, image_size=SIDE).train
    broken = data.data.files[data.rows[2]]
    content = broken.read_bytes()
    try:
        broken.write_bytes(b"no picture")
        with pytest.raises(ValueError, match=f"^data: {broken} is unreadable"):
            PictureCrops(data, CPU, RandomCrops(), progress=False)
    finally:
        broken.write_bytes(content)
    images = ImageTensors(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"^labels of data .*0\.\.2"):
        read(images, torch.arange(2), classes=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": -1}, ValueError, "^budget .*-1"),
        ({"threads": 0}, ValueError, "^threads .*0"),
        ({"order": torch.tensor([99])}, ValueError, "^order .*99"),
        ({"batch": 0}, ValueError, "^batch .*0"),
        ({"epoch": -1}, ValueError, "^epoch .*-1"),
    ],
)
def test_settings_out_of_range_are_refused(options, error, message):
    data = ImageTensors(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(error, match=message):
        read(data, **{"order": torch.arange(2), **options})


# ---- real pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("which", ["cut", "whole"])
def test_fifty_real_pictures_are_cropped_as_by_torchvision(which, size):
    data = load_data("coop:Caltech101", root=caltech(which), image_size=size)
    images, _ = data._source.read("test", data.form)
    crops, step = RandomCrops(seed=1), len(images) // 50
    chosen = torch.arange(0, 50 * step, step)
    _, cut, _ = read(images, chosen, budget=0, crops=crops)
    numbers = crops.numbers(len(images), 1)
    for row, crop in zip(chosen.tolist(), cut, strict=True):
        with Image.open(images.files[row]) as picture:
            box = crops.pixel_box(numbers[row].tolist(), picture.height, picture.width)
            assert torch.equal(crop, torchvisions(picture.convert("RGB"), box, size))
