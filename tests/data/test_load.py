import itertools
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from fastprompt.data import Data, ImageTensors, load_data
from fastprompt.data.dataset import ImageDataset, batches, check_dataset, fingerprint
from fastprompt.data.few_shot import class_range
from fastprompt.data.sdf import SHAPES
from fastprompt.data.shapes import COLORS

BUILT_IN = {
    "shapes": (80, {"train": 40, "val": 10, "test": 25}),
    "patterns": (6, {"train": 200, "val": 50, "test": 200}),
    "counts": (4, {"train": 200, "val": 50, "test": 300}),
}
PARTS = ("train", "val", "test")


def items(data: ImageDataset) -> list[tuple[bytes, int]]:
    """Each picture's bytes and label, in order."""
    pairs = [data[i] for i in range(len(data))]
    return [(image.numpy().tobytes(), label) for image, label in pairs]


def pictures(data: ImageDataset) -> list[bytes]:
    return [image for image, _ in items(data)]


def per_class(data: ImageDataset) -> list[int]:
    return torch.bincount(torch.tensor([label for _, label in items(data)])).tolist()


def assert_disjoint(data: Data) -> None:
    seen = [pictures(getattr(data, part)) for part in PARTS]
    everything = [picture for part in seen for picture in part]
    assert all(seen)
    assert len(set(everything)) == len(everything)


# ---- built-in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_sets_are_balanced_and_their_splits_disjoint(name: str) -> None:
    classes, sizes = BUILT_IN[name]
    data = load_data(name)
    assert len(set(data.classnames)) == len(data.classnames) == classes
    for part, size in sizes.items():
        assert per_class(getattr(data, part)) == [size] * classes
    assert_disjoint(data)
    image, label = data.train[0]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 48, 48))
    assert type(label) is int


@pytest.mark.parametrize("name", ["shapes-outline", "shapes-recolored", "shapes-crowded"])
def test_shifted_sets_ask_the_same_in_other_pictures(name: str) -> None:
    plain, shifted = load_data("shapes", image_size=16), load_data(name, image_size=16)
    assert shifted.classnames == plain.classnames
    assert per_class(shifted.test) == [25] * 80
    assert not set(pictures(plain.test)) & set(pictures(shifted.test))
    assert plain.test.fingerprint != shifted.test.fingerprint


def test_class_names_say_color_and_shape_in_the_labels_order() -> None:
    names = load_data("shapes").classnames
    assert names == [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    assert load_data("patterns").classnames[1] == "striped shape"
    assert load_data("counts").classnames == [
        "one shape",
        "two shapes",
        "three shapes",
        "four shapes",
    ]


def test_labels_say_what_is_drawn() -> None:
    data = load_data("shapes").test
    hues = {"red": 0, "green": 1, "blue": 2}
    for color, channel in hues.items():
        mine = (data.labels // 10) == COLORS.index(color)
        mean = data.images[mine].float().mean(dim=(0, 2, 3))
        others = data.images[~mine].float().mean(dim=(0, 2, 3))
        assert int((mean - others).argmax()) == channel, color


@pytest.mark.parametrize("image_size", [16, 32])
def test_image_size_is_followed(image_size: int) -> None:
    data = load_data("counts", image_size=image_size)
    assert data.image_size == image_size
    assert data.val.images.shape == (200, 3, image_size, image_size)


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16, "all"])
def test_shots_are_a_class_and_val_is_at_most_four(shots: int | str) -> None:
    data = load_data("patterns", shots=shots)
    few = shots != "all"
    assert per_class(data.train) == [shots if few else 200] * 6
    assert per_class(data.val) == [min(shots, 4) if few else 50] * 6
    assert per_class(data.test) == [200] * 6
    assert_disjoint(data)


def test_more_shots_than_there_are_take_all() -> None:
    assert per_class(load_data("patterns", shots=1000).train) == [200] * 6


def test_few_shots_are_the_first_of_more_shots() -> None:
    nested = [set(items(load_data("shapes", shots=n, seed=3).train)) for n in (1, 2, 4, 8, 16)]
    for fewer, more in itertools.pairwise(nested):
        assert fewer < more


def test_shots_are_drawn_by_seed() -> None:
    first, again, other = (items(load_data("shapes", shots=4, seed=s).train) for s in (1, 1, 2))
    assert first == again
    assert len(set(first) & set(other)) < len(first) / 2
    test = [items(load_data("counts", seed=s).test) for s in (1, 2)]
    assert test[0] == test[1]


def test_base_and_new_halves_partition_the_classes() -> None:
    whole, base, new = (load_data("shapes", shots=4, classes=c) for c in ("all", "base", "new"))
    assert base.classnames + new.classnames == whole.classnames
    assert len(base.classnames) == 40
    for part in PARTS:
        all_items = items(getattr(whole, part))
        first, second = items(getattr(base, part)), items(getattr(new, part))
        assert {label for _, label in first} == set(range(40))
        assert {label for _, label in second} == set(range(40))
        moved = [(image, label + 40) for image, label in second]
        assert sorted(first + moved) == sorted(all_items)


@pytest.mark.parametrize("classes", ["all", "base", "new"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_each_split_says_its_classes(name: str, classes: str) -> None:
    data = load_data(name, shots=1, classes=classes, image_size=16)
    for part in PARTS:
        assert getattr(data, part).classnames == data.classnames
        assert max(label for _, label in items(getattr(data, part))) == len(data.classnames) - 1


def test_an_odd_number_of_classes_gives_base_one_more() -> None:
    assert list(class_range(5, "base")) == [0, 1, 2]
    assert list(class_range(5, "new")) == [3, 4]
    assert list(class_range(5, "all")) == [0, 1, 2, 3, 4]


def test_fingerprints_differ_by_what_was_asked() -> None:
    usual = {"shots": 4, "seed": 0, "classes": "all", "image_size": 16}
    changes = [
        {},
        {"shots": 8},
        {"shots": "all"},
        {"seed": 1},
        {"classes": "base"},
        {"classes": "new"},
        {"image_size": 24},
    ]
    prints = [load_data("counts", **(usual | change)).train.fingerprint for change in changes]
    data = load_data("counts", **usual)
    prints += [data.val.fingerprint, data.test.fingerprint]
    prints.append(load_data("patterns", **usual).train.fingerprint)
    assert len(set(prints)) == len(prints)
    assert data.train.fingerprint == prints[0]


def test_the_arguments_load_the_same_again() -> None:
    data = load_data("patterns", shots=2, seed=5, classes="new", image_size=16)
    again = load_data(**data.arguments)
    assert again.train.fingerprint == data.train.fingerprint
    assert items(again.train) == items(data.train)
    assert again.classnames == data.classnames


# ---- folders -----------------------------------------------------------------------------------

MODES = {"RGB": (3,), "L": (), "RGBA": (4,)}


@pytest.fixture
def draw() -> Callable[..., None]:
    """Writes ``n`` PNGs into each class folder, of odd sizes or of ``side``; no two are alike."""
    noise = np.random.default_rng(0)

    def write(folder: Path, classes: dict[str, str], n: int, side: int | None = None) -> None:
        for name, mode in classes.items():
            (folder / name).mkdir(parents=True)
            for i in range(n):
                size = (side, side) if side else (19 + i, 40 - 2 * i)
                pixels = noise.integers(0, 256, (*size, *MODES[mode]), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{i}.png")

    return write


CLASSES = {"cat_fish": "RGB", "ant": "L", "bee": "RGBA"}
TWO = {"ant": "RGB", "bee": "RGB"}


def test_a_flat_folder_is_cut_70_10_20(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, CLASSES, 10)
    data = load_data(tmp_path, image_size=24)
    assert data.classnames == ["ant", "bee", "cat fish"]
    assert [per_class(getattr(data, part)) for part in PARTS] == [[7] * 3, [1] * 3, [2] * 3]
    assert_disjoint(data)
    for image, _ in (data.train[i] for i in range(21)):
        assert (image.dtype, image.shape) == (torch.uint8, (3, 24, 24))
    gray = [image for image, label in (data.train[i] for i in range(21)) if label == 0]
    assert all(torch.equal(image[0], image[1]) for image in gray)


def test_a_broken_image_is_named(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, CLASSES, 10)
    broken = sorted(next(p for p in tmp_path.iterdir() if p.is_dir()).iterdir())[0]
    broken.write_bytes(b"no image")
    data = load_data(tmp_path, image_size=24)
    with pytest.raises(ValueError, match=f"^data: .*{broken.name} .*remove"):
        _ = data.train


def test_a_flat_folder_is_cut_alike_at_every_seed(
    tmp_path: Path, draw: Callable[..., None]
) -> None:
    draw(tmp_path, CLASSES, 10)
    first, again, other = (items(load_data(tmp_path, seed=s).test) for s in (0, 0, 1))
    assert first == again == other  # else the test images of one seed train another
    assert_disjoint(load_data(tmp_path, seed=1))


def test_few_shots_and_halves_of_a_folder(tmp_path: Path, draw: Callable[..., None]) -> None:
    draw(tmp_path, {**CLASSES, "dog": "RGB"}, 10)
    whole = set(items(load_data(tmp_path).train))
    few = items(load_data(tmp_path, shots=2).train)
    assert set(few) < whole
    assert [label for _, label in few].count(1) == 2
    base, new = load_data(tmp_path, classes="base"), load_data(tmp_path, classes="new")
    assert (base.classnames, new.classnames) == (["ant", "bee"], ["cat fish", "dog"])
    for data in (base, new):
        assert [getattr(data, part).classnames for part in PARTS] == [data.classnames] * 3
    assert set(items(base.train)) | {(i, label + 2) for i, label in items(new.train)} == whole
    assert per_class(new.train) == [7, 7]


def folder_pictures(folder: Path) -> set[bytes]:
    return {
        np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1).tobytes()
        for file in folder.glob("*/*.png")
    }


@pytest.mark.parametrize("test_name", ["test", "val", "valid"])
def test_a_folder_with_train_and_test_alone_holds_val_out_of_train(
    tmp_path: Path, draw: Callable[..., None], test_name: str
) -> None:
    draw(tmp_path / "train", TWO, 20, side=16)
    draw(tmp_path / test_name, TWO, 3, side=16)
    data = load_data(tmp_path, image_size=16)
    assert data.classnames == ["ant", "bee"]
    assert set(pictures(data.test)) == folder_pictures(tmp_path / test_name)
    assert set(pictures(data.train) + pictures(data.val)) == folder_pictures(tmp_path / "train")
    assert (per_class(data.train), per_class(data.val)) == ([18, 18], [2, 2])
    assert_disjoint(data)


@pytest.mark.parametrize("val_name", ["val", "valid"])
def test_a_folder_with_all_three_splits_keeps_them(
    tmp_path: Path, draw: Callable[..., None], val_name: str
) -> None:
    for n, part in enumerate(("train", val_name, "test"), start=3):
        draw(tmp_path / part, TWO, n, side=16)
    (tmp_path / ".cache").mkdir()
    data = load_data(tmp_path, image_size=16)
    assert data.classnames == ["ant", "bee"]
    for part, folder in zip(PARTS, ("train", val_name, "test"), strict=True):
        assert set(pictures(getattr(data, part))) == folder_pictures(tmp_path / folder)
    assert_disjoint(data)


def test_a_test_folder_with_other_classes_is_told(
    tmp_path: Path, draw: Callable[..., None]
) -> None:
    draw(tmp_path / "train", {"ant": "RGB", "bee": "RGB"}, 2)
    draw(tmp_path / "test", {"ant": "RGB", "wasp": "RGB"}, 2)
    with pytest.raises(ValueError, match=r"^data: .*/test .*classes.*/train"):
        _ = load_data(tmp_path).test


def test_a_folders_fingerprint_follows_the_content_of_its_files(
    tmp_path: Path, draw: Callable[..., None]
) -> None:
    """Not their names and times, which differ between copies of a data set."""
    one, two = tmp_path / "one", tmp_path / "two"
    draw(one, CLASSES, 10)
    first = load_data(one).train
    shutil.copytree(one, two, copy_function=shutil.copyfile)
    assert load_data(two).train.fingerprint == first.fingerprint
    file = first.data.files[0]
    Image.new("L", (20, 20)).save(file)
    changed = load_data(one)
    test = load_data(two).test
    test.data.files[0].rename(two / "bee" / "moved.png")
    moved = load_data(two)
    prints = {first.fingerprint, changed.train.fingerprint, moved.val.fingerprint}
    prints |= {load_data(one, image_size=16).train.fingerprint, moved.train.fingerprint}
    prints |= {load_data(one, seed=1).train.fingerprint, changed.test.fingerprint}
    assert len(prints) == 7


# ---- torchvision -------------------------------------------------------------------------------


def write_mnist(root: Path, part: str, images: Tensor, labels: Tensor) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 2051, *images.shape)
    (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
    header = struct.pack(">II", 2049, len(labels))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> tuple[Path, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (130, 28, 28), generator=generator, dtype=torch.uint8)
    labels = (torch.arange(130) % 10).to(torch.uint8)
    write_mnist(tmp_path, "train", images[:100], labels[:100])
    write_mnist(tmp_path, "t10k", images[100:], labels[100:])
    return tmp_path, images, labels


def test_a_torchvision_set_is_read_and_val_is_held_out_of_train(
    mnist: tuple[Path, Tensor, Tensor],
) -> None:
    root, images, labels = mnist
    data = load_data("MNIST", root=root, image_size=28)
    assert data.classnames[:2] == ["0 - zero", "1 - one"]
    assert data.splits is None  # CoOp has no such set
    assert [per_class(getattr(data, part)) for part in PARTS] == [[9] * 10, [1] * 10, [3] * 10]
    assert_disjoint(data)
    written = [
        (image.expand(3, -1, -1).contiguous().numpy().tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(items(data.train) + items(data.val)) == sorted(written[:100])
    assert items(data.test) == written[100:]


def test_a_torchvision_set_takes_shots_and_halves(mnist: tuple[Path, Tensor, Tensor]) -> None:
    data = load_data("MNIST", root=mnist[0], shots=2, classes="new", image_size=20)
    assert data.classnames[0] == "5 - five"
    assert per_class(data.train) == [2] * 5
    assert data.train[0][0].shape == (3, 20, 20)
    whole = load_data("MNIST", root=mnist[0], shots=2, image_size=20)
    assert {(i, label + 5) for i, label in items(data.train)} < set(items(whole.train))
    assert data.train.fingerprint != whole.train.fingerprint


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "DTD", "SUN397"])
def test_a_torchvision_set_that_is_not_there_names_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^data: .*{name} .*root.*download=True"):
        load_data(name, root=tmp_path / "nowhere")


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "shape"}, ValueError, "'shape'.*'shapes'"),
        ({"name": "CIFAR-10"}, ValueError, "'CIFAR-10'.*'CIFAR10'"),
        ({"name": "shapes", "shots": 0}, ValueError, "^shots .*1.*0"),
        ({"name": "shapes", "shots": -1}, ValueError, "^shots .*-1"),
        ({"name": "shapes", "shots": 1.5}, TypeError, "^shots .*1.5"),
        ({"name": "shapes", "shots": "few"}, TypeError, "^shots .*'few'"),
        ({"name": "shapes", "image_size": 8}, ValueError, "^image_size .*16.*8"),
        ({"name": "shapes", "image_size": (48, 8)}, ValueError, "^image_size .*16.*8"),
        ({"name": "shapes", "image_size": (48,)}, ValueError, r"^image_size .*\(height, width\)"),
        ({"name": "shapes", "channels": 2}, ValueError, "^channels .*1 .*3 .*2"),
        ({"name": "shapes", "classes": "bas"}, ValueError, "^classes .*'base'.*'bas'"),
        ({"name": "/no/such/folder"}, FileNotFoundError, "^data: .* /no/such/folder"),
        ({"name": "./pictures"}, FileNotFoundError, r"^data: .* \./pictures"),
        ({"name": Path("pictures")}, FileNotFoundError, "^data: .* pictures"),
    ],
)
def test_bad_arguments_are_told(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_data(**arguments)


@pytest.mark.parametrize("inside", ["", "empty class/", "loose.png"])
def test_a_folder_without_class_folders_is_told(tmp_path: Path, inside: str) -> None:
    if inside.endswith("/"):
        (tmp_path / inside).mkdir()
    elif inside:
        Image.new("RGB", (8, 8)).save(tmp_path / inside)
    with pytest.raises(ValueError, match=f"^data: {tmp_path} .*folder.*class"):
        load_data(tmp_path)


# ---- channels and sizes --------------------------------------------------------------------------


def test_gray_images_of_a_built_in_set_are_the_luma() -> None:
    color, gray = (load_data("patterns", shots=1, channels=c).train for c in (3, 1))
    assert gray.images.shape == (len(color), 1, 48, 48)
    assert torch.equal(gray.images, rgb_to_grayscale(color.images))
    assert torch.equal(gray.labels, color.labels)
    assert gray.fingerprint != color.fingerprint


def test_a_built_in_set_is_resized_whole_to_a_size_that_is_not_square() -> None:
    square, wide = (load_data("patterns", shots=1, image_size=s) for s in (64, (32, 64)))
    assert wide.train.images.shape[1:] == (3, 32, 64)
    pooled = torch.nn.functional.avg_pool2d(square.train.images.float(), (2, 1))
    assert (wide.train.images.float() - pooled).abs().mean() < 4
    assert wide.image_size == (32, 64)
    assert load_data(**wide.arguments).train.fingerprint == wide.train.fingerprint
    assert wide.train.fingerprint != square.train.fingerprint
    assert load_data("patterns", image_size=(24, 24)).image_size == 24


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (16, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folders_images_cover_a_size_that_is_not_square(
    tmp_path: Path, draw: Callable[..., None], size: tuple[int, int], channels: int
) -> None:
    draw(tmp_path, TWO, 5, side=16)
    image, _ = load_data(tmp_path, image_size=size, channels=channels).train[0]
    assert image.shape == (channels, *size)
    assert image.dtype == torch.uint8
    edges = image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]
    assert all(edge.any() for edge in edges)  # no padding
    plain = load_data(tmp_path, image_size=max(size), channels=channels).train
    assert plain.fingerprint != load_data(tmp_path, image_size=size).train.fingerprint


def test_data_of_another_shape_says_how_to_load_it() -> None:
    for shape, remedy in (((1, 4, 4), "channels=1"), ((3, 2, 4), r"image_size=\(2, 4\)$")):
        with pytest.raises(ValueError, match=rf"^data .*\[3, 4, 4\].*{remedy}"):
            check_dataset([(BLACK[0], 0)], "data", shape=shape)


# ---- in memory ---------------------------------------------------------------------------------

BLACK = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (BLACK.float(), [0, 1, 2], ValueError, r"^images .*\[N, C, H, W\].*float32"),
        (BLACK[0], [0, 1, 2], ValueError, r"^images .*\[N, C, H, W\].*\[3, 4, 4\]"),
        (BLACK, [0, 1], ValueError, r"^labels .*\[3\].*\[2\]"),
        (BLACK, [[0], [1], [2]], ValueError, r"^labels .*\[3\].*\[3, 1\]"),
        (BLACK, [0.0, 1.0, 2.0], TypeError, "^labels .*torch.float32"),
        (BLACK, [0, 1, -1], ValueError, "^labels .*-1"),
    ],
)
def test_bad_tensors_are_told(
    images: Tensor, labels: list[object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ImageTensors(images, torch.tensor(labels))


def test_tensors_give_their_items() -> None:
    images = torch.arange(3 * 48, dtype=torch.uint8).view(3, 3, 4, 4)
    data = ImageTensors(images, torch.tensor([2, 0, 1], dtype=torch.int16))
    assert len(data) == 3
    assert data.labels.dtype == torch.int64
    assert torch.equal(data[1][0], images[1])
    assert [data[i][1] for i in range(3)] == [2, 0, 1]
    check_dataset(data, "data", shape=(3, 4, 4), classes=3)


def test_the_fingerprint_of_tensors_is_their_content() -> None:
    images, labels = torch.randint(256, (3, 3, 4, 4)).to(torch.uint8), torch.tensor([0, 1, 2])
    own = ImageTensors(images, labels).fingerprint
    assert ImageTensors(images.clone(), labels.clone()).fingerprint == own
    other = images.clone()
    other[2, 2, 3, 3] ^= 1
    assert ImageTensors(other, labels).fingerprint != own
    assert ImageTensors(images, torch.tensor([0, 1, 1])).fingerprint != own
    assert ImageTensors(images, labels, "my pictures").fingerprint == "my pictures"


class Plain:
    """A map-style data set and nothing more."""

    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.classes = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.classes[index]


@pytest.fixture
def numbered() -> Tensor:
    return torch.randint(
        256, (7, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_the_fingerprint_of_any_data_set_is_its_items(numbered: Tensor) -> None:
    labels = [0, 1, 2, 0, 1, 2, 0]
    own = fingerprint(Plain(numbered, labels))
    assert fingerprint(Plain(numbered.clone(), list(labels))) == own
    others = [
        Plain(numbered ^ 1, labels),
        Plain(numbered, [1, *labels[1:]]),
        Plain(numbered[:-1], labels[:-1]),
        Plain(numbered.flip(0), labels),
    ]
    assert len({own, *map(fingerprint, others)}) == 5
    assert fingerprint(ImageTensors(numbered, torch.tensor(labels), "mine")) == "mine"


@pytest.mark.parametrize(("kind", "workers"), [("memory", 0), ("plain", 0), ("plain", 1)], ids=str)
def test_batches_are_the_rows_in_order(numbered: Tensor, kind: str, workers: int) -> None:
    labels = [5, 4, 3, 2, 1, 0, 9]
    data = Plain(numbered, labels)
    if kind == "memory":
        data = ImageTensors(numbered, torch.tensor(labels))
    rows = [6, 2, 2, 0, 5]
    read = list(batches(data, rows, 2, workers))
    assert [indices.tolist() for indices, _, _ in read] == [[6, 2], [2, 0], [5]]
    assert [found.tolist() for _, _, found in read] == [[9, 3], [3, 5], [0]]
    pixels = torch.cat([images for _, images, _ in read])
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, numbered[rows].float() / 255)
    assert all(t.dtype == torch.int64 for indices, _, found in read for t in (indices, found))


@pytest.mark.parametrize("kind", ["memory", "plain"])
def test_no_rows_give_no_batches(numbered: Tensor, kind: str) -> None:
    labels = [0] * 7
    data = Plain(numbered, labels)
    if kind == "memory":
        data = ImageTensors(numbered, torch.tensor(labels))
    assert list(batches(data, [], 2)) == []


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (iter([]), TypeError, "^data .*list_iterator"),
        (Plain(BLACK[:0], []), ValueError, "^data .*empty"),
        ([BLACK[0]], TypeError, r"^data .*\(image, label\)"),
        ([(BLACK[0].float(), 0)], TypeError, r"^data .*\[C, H, W\].*float32"),
        ([("a.png", 0)], TypeError, r"^data .*\[C, H, W\].*str"),
        ([(BLACK[0], 0)], ValueError, r"^data .*\[3, 4, 4\].*image_size=8"),
        (ImageTensors(BLACK, torch.tensor([0, 1, 2])), ValueError, "^data .*image_size=8"),
    ],
)
def test_unfit_data_sets_are_told(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_dataset(data, "data", shape=(3, 8, 8))


def test_a_label_without_a_class_is_told() -> None:
    with pytest.raises(ValueError, match=r"^labels of data .*0\.\.1.*2"):
        check_dataset(ImageTensors(BLACK, torch.tensor([0, 1, 2])), "data", classes=2)


def test_a_torchvision_set_without_splits_is_cut(tmp_path):
    for label, name in enumerate(("Forest", "River")):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20, 20), (100 * label, 10 * i, 5)).save(folder / f"{i}.png")
    data = load_data("EuroSAT", root=tmp_path)
    assert data.classnames == ["Forest", "River"]
    assert data.splits == data.source["splits"] == "torchvision's splits, not CoOp's (coop:EuroSAT)"
    parts = [data.train, data.val, data.test]
    assert [len(p) for p in parts] == [14, 2, 4]
    seen = [tuple(image[:, 24, 24].tolist()) for part in parts for image, _ in part]
    assert len(set(seen)) == 20


def test_a_folder_too_small_to_cut(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=r"^data: .* test .*\b3\b"):
        _ = load_data(tmp_path).test


@pytest.mark.parametrize("n", range(3, 12))
def test_a_folder_of_a_few_images_is_cut_into_three_parts(tmp_path, n):
    for i in range(n):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), (20 * i, 5, 5)).save(tmp_path / name / f"{i}.png")
    data = load_data(tmp_path, shots="all", image_size=20)
    sizes = [len(part) for part in (data.train, data.val, data.test)]
    assert sum(sizes) == 2 * n
    assert min(sizes) >= 2
