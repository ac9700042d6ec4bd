"""Images are resized for evaluation as open_clip's own preprocessing does, bit for bit."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.coop_trees import SPLIT_SETS, caltech
from helpers.models import small_model
from PIL import Image
from torch import Tensor
from torchvision.transforms import Normalize

from fastprompt import load_clip, load_data
from fastprompt.data import encoded
from fastprompt.data.decode import decode
from fastprompt.data.load import load_recorded

NOISE = np.random.default_rng(0)
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def _write(folder: Path) -> list[str]:
    """Write pictures of each kind, and return their names."""

    def color(height, width):
        return Image.fromarray(NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8))

    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "rgb.jpg": color(70, 90),
        "rgb.png": color(70, 90),
        "gray.jpg": color(61, 83).convert("L"),
        "palette.png": color(70, 90).quantize(64),
        "palette.gif": color(70, 90).quantize(64),
        "cmyk.jpg": color(70, 90).convert("CMYK"),
        "rotated.jpg": color(70, 90),
        "tall.png": color(400, 17),
        "wide.png": color(17, 400),
        "tiny.png": color(1, 1),
        "small.png": color(3, 5),
        "exact.png": color(48, 48),
        "alpha.png": Image.fromarray(NOISE.integers(0, 256, (40, 50, 4), dtype=np.uint8)),
        "gray-alpha.png": color(40, 50).convert("LA"),
        "bilevel.png": color(40, 50).convert("1"),
    }
    folder.mkdir(parents=True)
    for name, image in files.items():
        image.save(folder / name, **({"exif": exif} if name == "rotated.jpg" else {}))
    return list(files)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, list[str]]:
    """A set of CoOp with these pictures."""
    root = tmp_path_factory.mktemp("pictures")
    folder, images, file, _ = SPLIT_SETS["DTD"]
    names = _write(root / folder / images)
    items = [[name, i % 2, "ab"[i % 2]] for i, name in enumerate(names)]
    split = {"train": items, "val": [], "test": items}
    (root / folder / file).write_text(json.dumps(split))
    return root, names


def normalized(image: Tensor) -> Tensor:
    return Normalize(MEAN, STD)(image.float() / 255)


FORMS = [
    (48, {}),
    (224, {}),
    (64, {"interpolation": "bilinear"}),
    (48, {"resize_mode": "squash"}),
    (40, {"resize_mode": "squash", "interpolation": "bilinear"}),
    (48, {"resize_mode": "longest", "fill_color": 100}),
    ((32, 48), {}),
]


@pytest.mark.parametrize(("size", "preprocess"), FORMS)
def test_sets_of_coop_are_resized_as_by_open_clip(tree, size, preprocess):
    root, names = tree
    data = load_data("coop:DTD", root=root, image_size=size, preprocess=preprocess)
    wanted = open_clip.image_transform(size, is_train=False, mean=MEAN, std=STD, **preprocess)
    for row, name in enumerate(names):
        with Image.open(root / "dtd" / "images" / name) as image:
            # converted before it is resized, as by Dassl: Pillow cannot interpolate a palette
            assert torch.equal(normalized(data.test[row][0]), wanted(image.convert("RGB"))), name
            if not name.startswith(("palette", "cmyk", "alpha", "gray-alpha", "bilevel")):
                assert torch.equal(normalized(data.test[row][0]), wanted(image)), name


def test_folders_are_resized_as_by_open_clip_after_decoding(tmp_path):
    names = _write(tmp_path / "a")
    _write(tmp_path / "b")
    data = load_data(tmp_path, image_size=48).test
    files = [data.data.files[row] for row in data.rows]
    wanted = open_clip.image_transform(48, is_train=False, mean=MEAN, std=STD)
    for row, path in enumerate(files):
        image = normalized(data[row][0])
        assert torch.equal(image, wanted(decode(path))), path.name
    # without rotation, transparency or a conversion of colors, decoding changes nothing
    for name in names:
        if name.startswith(("rgb", "gray.", "tall", "wide", "tiny", "small", "exact")):
            decoded, stored = decode(tmp_path / "a" / name), Image.open(tmp_path / "a" / name)
            assert torch.equal(wanted(decoded), wanted(stored)), name


def test_the_model_decides_how_images_are_resized(tree):
    root, _ = tree
    model = small_model()
    config = open_clip.transform.PreprocessCfg(
        size=48, mean=MEAN, std=STD, interpolation="bilinear", resize_mode="squash"
    )
    open_clip.factory.set_model_preprocess_cfg(model, vars(config))
    clip = load_clip(model)
    data = load_data("coop:DTD", root=root, image_size=48).for_model(clip)
    wanted = open_clip.transform.image_transform_v2(config, is_train=False)
    with Image.open(root / "dtd" / "images" / "rgb.jpg") as image:
        assert torch.equal(normalized(data.test[0][0]), wanted(image))
    plain = load_data("coop:DTD", root=root, image_size=48).for_model(load_clip(small_model()))
    assert plain.test.fingerprint != data.test.fingerprint
    again = load_recorded(json.loads(json.dumps(data.source)))
    assert again.test.fingerprint == data.test.fingerprint


def test_gray_images_keep_their_values(tree):
    root, names = tree
    data = load_data("coop:DTD", root=root, image_size=48, channels=1)
    row = names.index("exact.png")
    with Image.open(root / "dtd" / "images" / "exact.png") as image:
        assert np.array_equal(data.test[row][0][0].numpy(), np.asarray(image.convert("L")))


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("which", ["cut", "whole"])
def test_fifty_real_pictures_are_resized_as_by_open_clip(which, size):
    root = caltech(which)
    data = load_data("coop:Caltech101", root=root, image_size=size)
    images, _ = data._source.read("test", data.form)
    wanted = open_clip.image_transform(size, is_train=False, mean=MEAN, std=STD)
    rows = range(0, len(images), len(images) // 50)[:50]
    assert len(rows) == 50
    for row in rows:
        with Image.open(images.files[row]) as image:
            assert torch.equal(normalized(images[row][0]), wanted(image))


def test_a_file_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    decoded = []
    monkeypatch.setattr(encoded, "decode", lambda *a, **k: decoded.append(a[0]) or decode(*a, **k))
    first = load_data(tmp_path, image_size=48).test
    assert len(decoded) == len(set(decoded)) >= len(first)
    decoded.clear()
    assert load_data(tmp_path, image_size=48).test.fingerprint == first.fingerprint
    assert decoded == []
    changed = first.data.files[first.rows[0]]
    Image.new("RGB", (9, 9)).save(changed)
    assert load_data(tmp_path, image_size=48).test.fingerprint != first.fingerprint
    assert decoded == [changed]
