"""The data set `photos`, and Caltech101 without what the bundled models have seen."""

import io
import json
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
import torch
from helpers.coop_trees import SPLIT_SETS, caltech, entries, write_pickle, write_split
from PIL import Image

from fastprompt import load_data
from fastprompt.data import photos
from fastprompt.data.load import load_recorded

ASSETS = resources.files("fastprompt.assets")
SEEN = Path(__file__).parents[2] / "pretraining" / "caltech_seen.txt"
IMAGES = "caltech-101/101_ObjectCategories/"
SPLITS = ("train", "val", "test")


def stems(names):
    return {name.rsplit(".", 1)[0] for name in names}


def listed(split):
    return load_data("photos")._source.read(split, load_data("photos").form)[0]._names


def test_the_package_contains_the_pictures_and_their_license():
    data = ASSETS.joinpath("photos.zip").read_bytes()
    assert len(data) <= 6e6
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pictures = [name for name in archive.namelist() if name.startswith(IMAGES)]
        sizes = [Image.open(io.BytesIO(archive.read(name))).size for name in pictures]
    assert {min(size) for size in sizes} == {64}
    assert sorted(pictures) == sorted(IMAGES + name for part in SPLITS for name in listed(part))
    notice = ASSETS.joinpath("photos.LICENSE.txt").read_text("utf-8")
    for what in ("10.22002/D1.20086", "Perona", "CC BY 4.0", "resized"):
        assert what in notice


def test_every_class_has_pictures_in_each_split():
    data = load_data("photos")
    assert len(data.classnames) == 100
    assert data.templates == ("a photo of a {}.",)
    assert data.image_size == 64
    few = {"train": (10, 16), "val": (4, 4), "test": (8, 8)}
    for part, (least, most) in few.items():
        images = getattr(data, part)
        counts = Counter(label for _, label in images)
        assert len(counts) == 100
        assert (min(counts.values()), max(counts.values())) == (least, most)
        assert images[0][0].shape == (3, 64, 64)
    assert len(set().union(*map(listed, SPLITS))) == sum(len(listed(part)) for part in SPLITS)


def test_few_shots_and_a_recorded_source_load_again():
    data = load_data("photos", shots=4, seed=3, classes="base", image_size=48)
    again = load_recorded(data.source)
    assert "directory" not in data.source
    assert len(data.train) == 4 * 50
    assert data.train.files == again.train.files
    assert data.train.fingerprint == again.train.fingerprint
    assert all(name.endswith(".webp") for name in data.train.files)


def test_unpacked_pictures_are_a_data_set_of_coop(tmp_path):
    with zipfile.ZipFile(io.BytesIO(ASSETS.joinpath("photos.zip").read_bytes())) as archive:
        archive.extractall(tmp_path)
    ours, theirs = load_data("photos"), load_data("coop:Caltech101", root=tmp_path, image_size=64)
    assert ours.classnames == theirs.classnames
    for row in (0, 300, 799):
        (x, a), (y, b) = ours.test[row], theirs.test[row]
        assert a == b
        assert torch.equal(x, y)


def test_the_models_have_seen_the_rest_of_the_training_split():
    seen = stems(SEEN.read_text("utf-8").splitlines())
    assert not seen & stems(name for part in SPLITS for name in listed(part))
    assert len(seen) + len(listed("train")) == 4128
    assert photos.unseen_of_caltech("tiny-photos") == stems(listed("train"))


def test_the_models_have_seen_training_pictures_only():
    file = caltech("whole") / "caltech-101" / "split_zhou_Caltech101.json"
    split = {part: stems(x[0] for x in rows) for part, rows in json.loads(file.read_text()).items()}
    seen = stems(SEEN.read_text("utf-8").splitlines())
    assert seen <= split["train"]
    assert not seen & (split["val"] | split["test"])


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Caltech101 with 6 training pictures a class, of which 4 have not been seen."""
    items = write_split(tmp_path, "Caltech101")
    unseen = [name for name, _, _ in items["train"] if name[-5] in "1245"]
    monkeypatch.setattr(photos, "unseen_of_caltech", lambda model: stems(unseen))
    return tmp_path, set(unseen)


@pytest.mark.parametrize("shots", [2, 4, 16])
def test_draws_have_no_picture_that_a_model_has_seen(few, shots):
    root, unseen = few
    write_pickle(root / SPLIT_SETS["Caltech101"][0], entries(("face",)), shots, 0)
    data = load_data("coop:Caltech101", root=root, shots=shots, unseen_by="tiny-photos")
    assert set(data.train.files) <= unseen
    assert len(data.train) == 3 * min(shots, 4)
    assert len(data.test) == 6
    again = load_recorded(data.source)
    assert again.train.fingerprint == data.train.fingerprint


def test_all_training_images_without_those_that_a_model_has_seen(few):
    root, unseen = few
    assert len(load_data("coop:Caltech101", root=root, unseen_by="tiny-photos").train) == 12
    assert len(load_data("coop:Caltech101", root=root).train) == 18
    assert len(unseen) == 12


def test_unseen_by_other_models_or_of_other_data_is_refused():
    with pytest.raises(ValueError, match=r"unseen_by must be .*tiny-photos"):
        load_data("photos", unseen_by="tiny-photo")
    with pytest.raises(ValueError, match=r"unseen_by is for photos .* got shapes"):
        load_data("shapes", unseen_by="tiny-photos")
