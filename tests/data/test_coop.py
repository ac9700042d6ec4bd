"""Data sets in CoOp's layouts: splits, names, few-shot draws, and what is refused."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
from helpers.coop_trees import (
    CUT,
    DASSL,
    EACH,
    IDS,
    SPLIT_SETS,
    caltech,
    dassl_draw,
    datum_class,
    entries,
    fill,
    pickled,
    write_aircraft,
    write_classnames,
    write_imagenet,
    write_pickle,
    write_split,
)

from fastprompt import load_data
from fastprompt._utils import unpickling
from fastprompt.data.coop_sets import SETS
from fastprompt.data.load import load_recorded

PARTS = ("train", "val", "test")
TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "Flowers102": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DTD": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


def load(root: Path, name: str = "Caltech101", **options: object):
    return load_data(f"coop:{name}", root=root, image_size=16, **options)


def content(part) -> list[tuple[str, int]]:
    """The path and the label of each picture."""
    inner, rows = part.data, part.rows
    labels = [inner.labels[row] - part.first for row in rows]
    return list(zip(inner.names(rows), labels, strict=True))


def plain(items) -> list[tuple[str, int]]:
    return [(path, label) for path, label, _ in items]


def digest(names) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


# ---- layouts -----------------------------------------------------------------------------------


def test_every_set_is_in_the_table_with_its_template():
    assert [*SPLIT_SETS, "FGVCAircraft", "ImageNet"] == list(SETS)[:11]
    assert list(SETS)[11:] == ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
    assert {n: s.template for n, s in SETS.items() if s.template != "a photo of a {}."} == TEMPLATES


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_a_split_file_gives_pictures_names_and_order(tmp_path, name):
    items = write_split(tmp_path, name)
    data = load(tmp_path, name)
    assert data.classnames == [c.replace("_", " ") for c in SPLIT_SETS[name][3]]
    assert data.templates == (SETS[name].template,)
    assert data.splits == "CoOp's splits"
    for part in PARTS:
        assert content(getattr(data, part)) == plain(items[part])
    image, label = data.test[0]
    assert (image.shape, label) == ((3, 16, 16), 2)


@pytest.mark.parametrize("alias", ["OxfordFlowers", "DescribableTextures"])
def test_names_of_configurations_are_accepted(tmp_path, alias):
    name = {"OxfordFlowers": "Flowers102", "DescribableTextures": "DTD"}[alias]
    write_split(tmp_path, name)
    assert load(tmp_path, alias).name == f"coop:{name}"


def test_old_split_files_of_eurosat_get_the_new_names(tmp_path):
    write_split(tmp_path, "EuroSAT", entries(("AnnualCrop", "Forest", "SeaLake")))
    assert load(tmp_path, "EuroSAT").classnames == ["Annual Crop Land", "Forest", "Sea or Lake"]


def test_aircraft_has_its_own_lists(tmp_path):
    write_aircraft(tmp_path)
    data = load(tmp_path, "FGVCAircraft")
    assert data.classnames == ["707-320", "A300B4", "Boeing 717"]
    assert [len(getattr(data, part)) for part in PARTS] == [3 * n for n in EACH.values()]
    assert content(data.train)[0] == ("001001.jpg", 2)


def test_imagenet_is_tested_on_its_validation_images(tmp_path, caplog):
    write_imagenet(tmp_path)
    data = load(tmp_path, "ImageNet", shots=2, seed=1)
    assert data.classnames == ["tench", "goldfish", "sunglasses"]
    items = {
        "train": [(f"train/{w}/{w}_{i}.JPEG", y, "") for y, w in enumerate(IDS) for i in range(6)]
    }
    assert content(data.train) == plain(dassl_draw(items, 2, 1, ["train"])["train"])
    assert content(data.val) == content(data.test)
    assert (len(data.train.files), data.val.files, data.test.files) == (6, None, None)
    assert content(data.test)[0] == ("val/n01440764/n01440764_0.JPEG", 0)
    assert data.mask == (0, 1, 2)


def test_imagenet_can_be_evaluated_without_its_training_images(tmp_path):
    write_imagenet(tmp_path, train=0)
    assert len(load(tmp_path, "ImageNet").test) == 6
    with pytest.raises(ValueError, match=r"^data: coop:ImageNet has no train images"):
        _ = load(tmp_path, "ImageNet").train


@pytest.mark.parametrize("name", ["ImageNetA", "ImageNet-R", "ImageNetSketch"])
def test_a_variant_of_imagenet_has_the_mask_of_its_classes(tmp_path, name, caplog):
    spec = SETS[name.replace("-", "")]
    write_classnames(tmp_path / spec.folder)
    images = tmp_path / spec.folder / spec.images
    fill(images, (f"{wnid}/{i}.jpg" for wnid in (IDS[2], IDS[0]) for i in range(2)))
    (images / "README.txt").write_text("read me")
    data = load(tmp_path, name)
    assert data.classnames == ["tench", "sunglasses"]
    assert data.mask == (0, 2)
    assert "2 of the 3 classes of ImageNet" in caplog.text
    assert [label for _, label in content(data.test)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"has no train images, only test"):
        _ = data.train


def test_folders_of_imagenet_v2_are_numbered(tmp_path):
    write_classnames(tmp_path / "imagenet")  # its own list may be missing
    images = tmp_path / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    fill(images, (f"{i}/{j}.jpeg" for i in range(3) for j in range(2)))
    data = load(tmp_path, "ImageNetV2")
    assert (data.classnames[2], data.mask) == ("sunglasses", (0, 1, 2))
    assert content(data.test)[-1] == ("2/1.jpeg", 2)
    (images / "1" / "0.jpeg").unlink()
    (images / "1" / "1.jpeg").unlink()
    (images / "1").rmdir()
    with pytest.raises(FileNotFoundError, match=r"^data: .* lacks 1 of the folders 0 to 2: '1'"):
        load(tmp_path, "ImageNetV2")


def test_two_classes_of_imagenet_share_a_name(tmp_path, bundled_clip):
    ids = (*IDS, "n04356057")
    write_classnames(tmp_path / "imagenet-sketch", ids)
    fill(tmp_path / "imagenet-sketch" / "images", (f"{wnid}/0.jpg" for wnid in ids))
    data = load_data("coop:ImageNetSketch", root=tmp_path, image_size=48)
    assert data.classnames[2:] == ["sunglasses"] * 2
    image, _ = data.test[0]
    logits = bundled_clip.zero_shot(data.classnames, data.templates)(image[None].float() / 255)
    # rounding may depend on the place in the matrix product
    assert logits[0, 2].item() == pytest.approx(logits[0, 3].item(), rel=1e-5)


def test_base_and_new_are_halves_by_label(tmp_path):
    items = write_split(tmp_path, "DTD", entries(("a", "b", "c", "d", "e")))
    drawn = dassl_draw(items, 2, 7)
    for classes, labels in (("base", (0, 1, 2)), ("new", (3, 4))):
        data = load(tmp_path, "DTD", classes=classes, shots=2, seed=7)
        assert data.classnames == ["abcde"[label] for label in labels]
        for part in ("train", "val"):  # drawn over all classes, then cut
            want = [(p, y - labels[0]) for p, y in plain(drawn[part]) if y in labels]
            assert content(getattr(data, part)) == want


# ---- few shots ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 5, 6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_draw_is_that_of_dassl(tmp_path, shots, seed):
    items = write_split(tmp_path, "Food101")
    drawn = dassl_draw(items, shots, seed)
    data = load(tmp_path, "Food101", shots=shots, seed=seed)
    for part in ("train", "val"):
        assert content(getattr(data, part)) == plain(drawn[part])
        assert getattr(data, part).files == [entry[0] for entry in drawn[part]]
    assert data.source["few_shots"] == f"drawn as by CoOp, seed {seed}"


def test_a_class_with_fewer_pictures_gives_all(tmp_path, caplog):
    items = entries(("a", "b", "c"))
    items["train"] = [e for e in items["train"] if e[1] or e[0].endswith(("0.jpg", "1.jpg"))]
    write_split(tmp_path, "DTD", items)
    data = load(tmp_path, "DTD", shots=4, seed=3)
    assert content(data.train) == plain(dassl_draw(items, 4, 3)["train"])
    assert "1 classes with fewer than 4 train images, of which all are taken" in caplog.text
    assert "'a (2)'" in caplog.text


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_few_shot_file_is_used(tmp_path, protocol):
    items = write_split(tmp_path, "OxfordPets")
    picked = {part: items[part][::-2] for part in ("train", "val")}
    write_pickle(tmp_path / "oxford_pets", picked, 2, 1, protocol=protocol)
    data = load(tmp_path, "OxfordPets", shots=2, seed=1)
    for part in ("train", "val"):
        assert content(getattr(data, part)) == plain(picked[part])
    assert data.source["few_shots"] == "split_fewshot/shot_2-seed_1.pkl"
    other = load(tmp_path, "OxfordPets", shots=2, seed=2)
    assert content(other.train) == plain(dassl_draw(items, 2, 2)["train"])


def test_a_few_shot_file_of_windows_or_of_imagenet(tmp_path):
    items = write_split(tmp_path, "StanfordCars")
    swapped = {
        part: [(p.replace("/", "\\"), y, n) for p, y, n in items[part][:3]] for part in items
    }
    write_pickle(tmp_path / "stanford_cars", swapped, 1, 1, prefix="C:\\data\\stanford_cars\\")
    assert content(load(tmp_path, "StanfordCars", shots=1, seed=1).train) == plain(
        items["train"][:3]
    )
    write_imagenet(tmp_path)
    picked = [(f"train/{IDS[2]}/{IDS[2]}_1.JPEG", 2, "sunglasses")]
    write_pickle(tmp_path / "imagenet", {"train": picked}, 1, 1)
    data = load(tmp_path, "ImageNet", shots=1, seed=1)
    assert content(data.train) == plain(picked)
    assert len(data.val) == 6


class Evil:
    def __reduce__(self):
        return os.system, ("touch was-run",)


def _bombs():
    datum = datum_class()
    one = datum("a/train_0.jpg", 0, "a")
    foreign = datum_class("dassl.utils")
    good = pickled({"train": [one], "val": []}, datum)
    named = pickle.dumps({"train": [Evil()], "val": []})
    return {
        "a call": (named, r"posix\.system|nt\.system"),
        "another Datum": (pickled([foreign("a", 0, "a")], foreign), r"dassl\.utils\.Datum"),
        "a class": (pickle.dumps({"train": [Path], "val": []}), r"pathlib"),
        "a builtin": (pickle.dumps({"train": [bytearray(3)], "val": []}), "bytearray|BYTEARRAY8"),
        "protocol 0": (pickled({"train": [one]}, datum, 0), r"instruction|_reconstructor"),
        "a persistent object": (b"\x80\x02X\x01\0\0\0aQ.", "BINPERSID"),
        "a large number": (b"\x80\x04]r\xff\xff\xff\x7f.", "numbers an object"),
        "a large buffer": (b"\x80\x05\x96" + b"\xff" * 6 + b"\0\0.", "damaged|BYTEARRAY8"),
        "cut short": (good[: len(good) // 2], "damaged"),
        "no pickle": (b"train", "damaged|instruction"),
        "empty": (b"", "damaged"),
    }


@pytest.mark.parametrize("kind", _bombs())
def test_a_few_shot_file_with_anything_else_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path, "DTD")
    path = tmp_path / "dtd" / "split_fewshot" / "shot_1-seed_1.pkl"
    path.parent.mkdir()
    content, message = _bombs()[kind]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^data: .*shot_1-seed_1.pkl .*({message}).*only .*Datum"):
        _ = load(tmp_path, "DTD", shots=1, seed=1).train
    assert not Path("was-run").exists()


@pytest.mark.parametrize("limit", ["_MOST_BYTES", "_MOST_OPCODES"])
def test_a_few_shot_file_that_is_too_large_is_refused(tmp_path, monkeypatch, limit):
    items = write_split(tmp_path, "DTD")
    write_pickle(tmp_path / "dtd", items, 1, 1)
    monkeypatch.setattr(unpickling, limit, 200)
    with pytest.raises(ValueError, match=r"^data: .*shot_1-seed_1.pkl .*(above|more than) .*200"):
        _ = load(tmp_path, "DTD", shots=1, seed=1).train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda datum: [], "list 'train'"),
        (lambda datum: {"train": []}, "list 'val'"),
        (lambda datum: {"train": ["a"], "val": []}, "not a Datum"),
        (lambda datum: {"train": [datum(3, 0, "a")], "val": []}, "not a Datum"),
        (lambda datum: {"train": [datum("x.jpg", True, "a")], "val": []}, "not a Datum"),
        (lambda datum: {"train": [datum("/x.jpg", 0, "a")] * 5, "val": []}, r"5 pictures .* split"),
        (lambda datum: {"train": [datum("/banded/train_0.jpg", 1, "")], "val": []}, "other labels"),
    ],
)
def test_a_few_shot_file_must_fit_the_split(tmp_path, change, message):
    write_split(tmp_path, "DTD")
    path = tmp_path / "dtd" / "split_fewshot" / "shot_1-seed_1.pkl"
    path.parent.mkdir()
    datum = datum_class(DASSL)
    path.write_bytes(pickled(change(datum), datum))
    with pytest.raises(ValueError, match=f"^data: .*shot_1-seed_1.pkl .*{message}"):
        _ = load(tmp_path, "DTD", shots=1, seed=1).train


def test_a_broken_picture_is_left_out_of_the_list(tmp_path):
    items = write_split(tmp_path, "DTD")
    drawn = dassl_draw(items, 2, 1)["train"]
    (tmp_path / "dtd" / "images" / drawn[0][0]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"unreadable"):
        _ = load(tmp_path, "DTD", shots=2, seed=1).train
    data = load(tmp_path, "DTD", shots=2, seed=1, on_error="skip")
    assert content(data.train) == plain(drawn[1:])
    assert data.train.unreadable == 1


# ---- the data set again ------------------------------------------------------------------------


def test_a_recorded_set_is_loaded_again(tmp_path, monkeypatch):
    write_split(tmp_path / "sets", "DTD")
    monkeypatch.chdir(tmp_path)
    data = load_data("coop:DTD", root="sets", shots=2, seed=1, image_size=16, classes="base")
    source = json.loads(json.dumps(data.source))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_recorded(source)
    assert again.train.fingerprint == data.train.fingerprint
    assert again.train.files == data.train.files


def test_fingerprints_tell_draws_and_pictures_apart(tmp_path):
    items = write_split(tmp_path, "DTD")
    one, two = (load(tmp_path, "DTD", shots=1, seed=seed) for seed in (1, 2))
    marks = {one.train.fingerprint, two.train.fingerprint, one.test.fingerprint}
    write_pickle(tmp_path / "dtd", {p: items[p][:4] for p in items}, 1, 1)
    marks.add(load(tmp_path, "DTD", shots=1, seed=1).train.fingerprint)
    assert len(marks) == 4
    assert two.test.fingerprint == one.test.fingerprint.replace("seed=1", "seed=2")


# ---- what is refused ---------------------------------------------------------------------------


def test_what_is_missing_is_named_with_its_place(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"^data: coop:OxfordPets needs oxford_pets/split_zhou_OxfordPets.json and "
        r"oxford_pets/images/ in .*put them there.* root$",
    ):
        load(tmp_path, "OxfordPets")
    write_split(tmp_path, "DTD")
    with pytest.raises(FileNotFoundError, match=f"as root, such as {tmp_path}$"):
        load(tmp_path / "dtd", "DTD")


def test_an_unknown_name_suggests_others(tmp_path):
    with pytest.raises(ValueError, match=r"'Caltech-101'.*'Caltech101'"):
        load(tmp_path, "Caltech-101")
    with pytest.raises(ValueError, match=r"'coop-DTD'.*'coop:DTD'"):
        load_data("coop-DTD", root=tmp_path)


def _change(items, how):
    train, test = items["train"], items["test"]
    if how == "gap":
        return {p: [(f, y + (y > 1), n) for f, y, n in entries] for p, entries in items.items()}
    if how == "two names":
        train[0] = (train[0][0], 2, "plaid")
    if how == "test only":
        test.append(("plaid/0.jpg", 3, "plaid"))
    if how == "outside":
        test[0] = ("../../other.jpg", 0, "banded")
    if how == "absolute":
        test[0] = ("/other.jpg", 0, "banded")
    if how == "no label":
        test[0] = ("a.jpg", "0", "banded")
    if how == "no list":
        del items["val"]
    return items


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gap", r"3 classes.* 0 to 2.* no label 2"),
        ("two names", r"two names for the label 2: 'plaid' and 'zigzagged'"),
        ("test only", r"train lacks: 'plaid'"),
        ("outside", r"below the folder of the pictures.*other.jpg"),
        ("absolute", r"below the folder of the pictures.*other.jpg"),
        ("no label", r"\[path, label, class name\] in test"),
        ("no list", r"must have the lists train, val, test"),
    ],
)
def test_a_split_file_that_does_not_fit_together_is_refused(tmp_path, how, message):
    items = write_split(tmp_path, "DTD")
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    file.write_text(json.dumps(_change(items, how)))
    with pytest.raises(ValueError, match=f"^data: .*split_zhou_Desc.*{message}"):
        load(tmp_path, "DTD")
    file.write_text("{")
    with pytest.raises(ValueError, match=r"^data: .*split_zhou_Desc.*JSON"):
        load(tmp_path, "DTD")


def test_missing_pictures_are_counted_and_three_are_named(tmp_path):
    items = write_split(tmp_path, "DTD")
    images = tmp_path / "dtd" / "images"
    for path, _, _ in [*items["train"][:4], items["test"][0]]:
        (images / path).unlink()
    first = ", ".join(repr(path) for path, _, _ in items["train"][:3])
    with pytest.raises(
        FileNotFoundError, match=f"^data: 5 of the 39 pictures .*: {first}, "
    ) as told:
        load(tmp_path, "DTD")
    assert str(images) in str(told.value)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: (f / "classnames.txt").write_text("n01440764\n"), "lines such as"),
        (lambda f: (f / "classnames.txt").write_text("n0 a\nn0 b\n"), "two names for n0"),
        (lambda f: (f / "classnames.txt").write_text("n0 a\n"), "no name for .*'n01440764'"),
        (lambda f: (f / "classnames.txt").write_text("\n"), "is empty"),
        (lambda f: fill(f / "images/val", ["n1/a.jpg"]), "only one of them has 'n1'"),
        (lambda f: [x.unlink() for x in (f / "images/val" / IDS[0]).iterdir()], "no pictures"),
    ],
)
def test_folders_of_imagenet_that_do_not_fit_are_refused(tmp_path, write, message):
    write_imagenet(tmp_path)
    write(tmp_path / "imagenet")
    with pytest.raises(ValueError, match=f"^data: .*{message}"):
        load(tmp_path, "ImageNet")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("images_variant_val.txt", "001 Concorde\n", "'Concorde', which variants.txt lacks"),
        ("images_variant_train.txt", "001001 A300B4\n", "lacks pictures of '707-320'"),
        ("variants.txt", "A300B4\nA300B4\n", "names a class twice"),
    ],
)
def test_lists_of_aircraft_that_do_not_fit_are_refused(tmp_path, name, text, message):
    write_aircraft(tmp_path)
    (tmp_path / "fgvc_aircraft" / name).write_text(text)
    with pytest.raises(ValueError, match=f"^data: .*{message}"):
        load(tmp_path, "FGVCAircraft")


# ---- real pictures -----------------------------------------------------------------------------

# of the paths of a draw, in order
CUT_HASHES = {
    1: ("12c7e63752fc5734", "7a29ce8b4394b7c0"),
    2: ("a1c0b6f6fa1acf08", "bdf2a56edc6efc31"),
    3: ("efdb4b589df0878a", "3614e18e31ac2df4"),
}
REAL_HASHES = {
    (1, 1): "7c6caa4f8de17d8f",
    (1, 2): "a28d86e9adece4df",
    (1, 3): "39e815b1294dfa1a",
    (16, 1): "227259a57d0da32c",
    (16, 2): "555bd45b9b099f2b",
    (16, 3): "43acea3b0c7fb118",
}


def few_shot_names(data, part, shots, seed) -> list[str]:
    """The paths of a draw, without decoding a picture."""
    images, _ = data._source.read(part, data.form)
    return images.names(data._source.few_shots.rows(part, shots, seed))


def test_the_cut_of_caltech101():
    data = load(CUT, shots=1, classes="new")
    assert len(data.classnames) == 20
    assert data.classnames[-3:] == ["umbrella", "wheelchair", "windsor chair"]
    assert [len(getattr(data, part)) for part in PARTS] == [20, 20, 80]
    found = {
        seed: tuple(digest(few_shot_names(data, part, 2, seed)) for part in PARTS[:2])
        for seed in (1, 2, 3)
    }
    assert found == CUT_HASHES


def test_the_real_caltech101():
    data = load(caltech("whole"))
    assert len(data.classnames) == 100
    assert data.classnames[:5] == ["face", "leopard", "motorbike", "accordion", "airplane"]
    assert data.classnames[18] == "car side"
    assert data.classnames[-1] == "yin yang"
    whole = [data._source.read(part, data.form) for part in PARTS]
    assert [len(labels) for _, labels in whole] == [4128, 1649, 2465]
    found = {
        (shots, seed): digest(
            [name for part in PARTS[:2] for name in few_shot_names(data, part, shots, seed)]
        )
        for shots in (1, 16)
        for seed in (1, 2, 3)
    }
    assert found == REAL_HASHES
