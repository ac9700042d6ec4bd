"""Captions, pictures and augmentation of the pre-training on photographs."""

import io
import json
import zipfile
from itertools import chain

import pytest
import torch
from helpers.coop_trees import dassl_draw, entries, write_split
from PIL import Image

from fastprompt.data.coop import find_coop
from pretraining import photo_captions, photo_data, photo_set
from pretraining.photo_captions import NAMES, TRUTHS, describe_classes
from pretraining.photo_data import Batches, Photos, Pictures
from pretraining.photo_words import CALTECH101, PHOTOS64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_classes_of_both_sets_have_words():
    assert (len(PHOTOS64), len(CALTECH101)) == (64, 100)
    shared = {"dragonfly", "elephant", "lobster", "pizza", "scorpion"}
    assert PHOTOS64.keys() & CALTECH101.keys() == shared
    assert len(NAMES) == 159


def test_super_classes_are_true_of_all_their_classes():
    dogs = {NAMES[i] for i in TRUTHS["dog"].nonzero()[:, 0].tolist()}
    assert dogs == {"German shepherd", "Yorkshire terrier", "golden retriever", "dalmatian"}
    assert TRUTHS["crocodile"].sum() == 2  # and crocodile head


def test_each_caption_is_true_of_its_own_picture_and_alone_of_its_class_if_it_names_it():
    labels = torch.arange(len(NAMES)).repeat(8)
    captions = describe_classes(labels, generator())
    true = captions.true_of(labels)
    assert true.diagonal().all()
    for text, truth, label in zip(captions.texts, captions.truths, labels.tolist(), strict=True):
        assert truth.any()
        if "retriever" in text:
            assert NAMES[label] == "golden retriever"
            assert truth.sum() == 1
    kinds = captions.truths.sum(dim=1)
    assert 0.5 < (kinds <= 2).float().mean() < 0.95  # the others are super-classes


def test_articles():
    assert photo_captions.with_article("ant") == "an ant"
    assert photo_captions.with_article("dog") == "a dog"


def test_two_thirds_of_a_small_class_are_for_tuning_in_the_order_of_the_draw():
    labels = [0] * 9 + [1] * 3
    assert photo_data.shipped_rows(labels, [11, 3, 10, 0, 1, 2, 9, 4, 5, 8]) == [
        *(11, 3, 10, 0, 1, 2, 4, 5)
    ]


# ---- reading -----------------------------------------------------------------------------------


def picture(size, value, kind="WEBP"):
    out = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(out, kind, lossless=True)
    return out.getvalue()


@pytest.fixture
def zips(tmp_path, monkeypatch):
    """Both zip files: 10 pictures of each class of photos64, 3 of two classes of Caltech101."""
    with zipfile.ZipFile(tmp_path / "photos64.zip", "w") as archive:
        for label, title in enumerate(PHOTOS64):
            for row in range(10):
                archive.writestr(f"train/{title}/{row:04}.webp", picture((64, 64), label))
            archive.writestr(f"test/{title}/0000.webp", picture((64, 64), label))
    with zipfile.ZipFile(tmp_path / "caltech-101.zip", "w") as archive:
        split = {
            part: [(f"{t}/{part}{i}.jpg", label, t) for label, t in enumerate(("face", "car_side"))]
            for part, i in (("train", 0), ("val", 0), ("test", 0))
        }
        split["train"].append(("face/other.jpg", 0, "face"))
        archive.writestr(photo_data._CALTECH, json.dumps(split))
        for name, _, _ in chain(*split.values()):
            size = (96, 150) if "face" in name else (96, 96)
            archive.writestr(f"{photo_data._PICTURES}/{name}", picture(size, 99, "JPEG"))
    monkeypatch.setattr(photo_data, "SEEN", tmp_path / "seen.txt")
    (tmp_path / "seen.txt").write_text("face/train0.jpg\ncar_side/train0.jpg\n")
    return tmp_path


def test_reading_holds_out_the_last_pictures_and_takes_the_seen_ones(zips):
    found = photo_data.read_photos(zips)
    assert found.photos.labels.tolist() == [y for y in range(64) for _ in range(2)]
    assert found.held.labels.tolist() == [y for y in range(64) for _ in range(8)]
    assert torch.equal(found.photos.pixels[:, 0, 0, 0], found.photos.labels.to(torch.uint8))
    # three squares of the long picture, one of the other
    names = [NAMES[y] for y in found.caltech.labels.tolist()]
    assert names == ["face", "face", "face", "car side"]
    assert [list(CALTECH101)[y] for y in found.val.labels.tolist()] == ["face", "car side"]
    assert found.caltech.pixels.shape == (4, 3, 64, 64)
    assert len(photo_data.read_photos64(zips, "test").labels) == 64


# ---- batches -----------------------------------------------------------------------------------


def numbered(n, classes):
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 64, 64)
    return Pictures(pixels, torch.arange(n) % classes)


def test_an_epoch_draws_each_picture_once_and_a_step_is_the_same_again():
    photos = Photos(numbered(54, 64), numbered(20, 10), numbered(2, 2), numbered(2, 2))
    batches = Batches(photos, 32, seed=1)
    assert batches.per_epoch == 2
    drawn = [batches.draw(step, generator(step)) for step in (0, 1, 2)]
    own = [x.pixels[:27, 0, 0, 0].tolist() for x in drawn]
    assert sorted(own[0] + own[1]) == list(range(54))
    assert own[2] != own[0]
    again = batches.draw(1, generator(1))
    assert torch.equal(again.pixels, drawn[1].pixels)
    assert torch.equal(again.labels, drawn[1].labels)


def test_augmented_images_are_windows_that_are_flipped_in_half_of_the_cases():
    slope = torch.arange(64, dtype=torch.uint8) * 3
    x = photo_data.augment(slope.expand(400, 3, 64, 64), generator())
    assert x.shape == (400, 3, 64, 64)
    assert x.min() >= 0
    assert x.max() <= 1
    rising = (x[:, 0, 0, -1] > x[:, 0, 0, 0]).float().mean()
    assert 0.4 < rising < 0.6
    assert (x[:, 0].std(dim=1) < 1e-5).all()  # rows stay equal: nothing is turned
    assert torch.equal(x, photo_data.augment(slope.expand(400, 3, 64, 64), generator()))


def test_mixtures_have_the_share_that_is_returned():
    x = torch.zeros(2, 3, 64, 64)
    x[0] = 1
    shares = []
    for seed in range(200):
        mixed, share = photo_data.mix(x, generator(seed))
        assert mixed[0].mean().item() == pytest.approx(share, abs=1e-5)
        shares.append(share)
    assert 60 < shares.count(1.0) < 140


# ---- the pictures of the package ---------------------------------------------------------------


def test_the_packed_pictures_are_the_draw_and_equal_each_time(tmp_path):
    classes, each = ("face", "car_side"), {"train": 24, "val": 6, "test": 9}
    items = write_split(tmp_path, "Caltech101", entries(classes, each))
    data = photo_set.photo_set(tmp_path)
    assert data == photo_set.photo_set(tmp_path)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        split = json.loads(archive.read("caltech-101/split_zhou_Caltech101.json"))
        archive.extractall(tmp_path / "unpacked")
    assert {part: len(rows) for part, rows in split.items()} == {"train": 32, "val": 8, "test": 16}
    drawn = dassl_draw(items, 16, 1)
    for part in ("train", "val"):
        names = {name.replace(".webp", ".jpg") for name, _, _ in split[part]}
        assert names == {name for name, _, _ in drawn[part]}
    assert len(find_coop("Caltech101", tmp_path / "unpacked").content.classnames) == 2
