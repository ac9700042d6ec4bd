"""Manifests and Hugging Face data sets: equal to an image folder with the same pictures."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.picture_sources import FORM, NAMES, PARTS, assert_equal, write, write_manifest
from PIL import Image
from torch.utils.data import DataLoader

from fastprompt import evaluate, load_clip
from fastprompt.data import load_data
from fastprompt.data.load import load_recorded


def numbered(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """The rows with labels in the place of class names."""
    out: list[dict[str, object]] = [dict(row) for row in rows]
    for row in out:
        row["label"] = NAMES.index(row.pop("classname"))
    return out


def hf_of(root: Path, rows: list[dict[str, str]]):
    """The rows as `datasets` loads them: a Dataset, or a DatasetDict if they have splits."""
    datasets = pytest.importorskip("datasets")
    kind = datasets.Features({"label": datasets.ClassLabel(names=NAMES), "image": datasets.Image()})

    def of(part: str | None):
        own = [row for row in rows if row.get("split") == part]
        labels = [NAMES.index(row["classname"]) for row in own]
        images = [str(root / row["path"]) for row in own]
        return datasets.Dataset.from_dict({"label": labels, "image": images}, features=kind)

    if "split" not in rows[0]:
        return of(None)
    return datasets.DatasetDict({"validation" if p == "val" else p: of(p) for p in PARTS})


SPLITS = pytest.mark.parametrize("parts", [{"": 8}, {"train": 4, "val": 2, "test": 2}])


@SPLITS
@pytest.mark.parametrize("kind", ["csv", "jsonl", "labels", "interleaved", "elsewhere"])
def test_a_manifest_is_equal_to_the_folder(tmp_path, parts, kind):
    rows = write(tmp_path / "pictures", parts)
    options = dict(FORM)
    if kind == "labels":
        rows, options["classnames"] = numbered(rows), NAMES
    elif kind == "interleaved":  # in the order of the folder within each class alone
        rows.sort(key=lambda row: Path(row["path"]).name)
    place = tmp_path / "pictures"
    if kind == "elsewhere":
        (tmp_path / "lists").mkdir()
        place, options["root"] = tmp_path / "lists", tmp_path / "pictures"
    file = write_manifest(place / f"list.{'jsonl' if kind == 'jsonl' else 'csv'}", rows)
    data, folder = load_data(file, **options), load_data(tmp_path / "pictures", **FORM)
    assert_equal(data, folder)
    again = load_recorded(json.loads(json.dumps(data.train.source)))
    assert again.train.fingerprint == data.train.fingerprint
    assert data.train.files == folder.train.files  # the paths that a run lists


@SPLITS
def test_a_hugging_face_data_set_is_equal_to_the_folder(tmp_path, parts, monkeypatch):
    loaded = hf_of(tmp_path / "pictures", write(tmp_path / "pictures", parts))
    folder = load_data(tmp_path / "pictures", **FORM)
    data = load_data(loaded, **FORM)
    assert_equal(data, folder)
    assert load_data(**data.arguments).test.fingerprint == data.test.fingerprint
    source = json.loads(json.dumps(data.train.source))
    assert (source["name"], source["type"]) == (None, type(loaded).__name__)
    monkeypatch.chdir(tmp_path)
    loaded.save_to_disk("saved")  # with the bytes of the pictures
    shutil.rmtree(tmp_path / "pictures")
    named = load_data("hf:saved", **FORM)
    assert_equal(named, data := load_data("hf:" + str(tmp_path / "saved"), **FORM))
    assert data.test.fingerprint == folder.test.fingerprint
    monkeypatch.chdir("/")
    again = load_recorded(json.loads(json.dumps(named.train.source)))
    assert again.train.fingerprint == named.train.fingerprint


def test_a_folder_that_datasets_reads_is_equal(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "pictures", {"train": 4, "test": 2})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = load_data(f"hf:{tmp_path / 'pictures'}", **FORM)
    assert_equal(data, load_data(tmp_path / "pictures", **FORM))


@pytest.mark.parametrize("kind", ["manifest", "hf"])
def test_results_are_equal(tmp_path, kind):
    rows = write(tmp_path, {"": 8})
    clip = load_clip("tiny-shapes")
    manifest = kind == "manifest"
    other = write_manifest(tmp_path / "list.csv", rows) if manifest else hf_of(tmp_path, rows)
    found = []
    for source in (tmp_path, other):
        data = load_data(source, **FORM)
        model = clip.zero_shot(data.classnames, data.templates)
        result = evaluate(
            model, data.test, ["clean", "pgd-2"], eps="1/255", progress=False, sanity="off"
        )
        rows = [{k: v for k, v in row.items() if "second" not in k} for row in result.rows]
        found.append((rows, result.data["fingerprint"], result.data["labels"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["manifest", "hf"])
def test_workers_decode_the_rows(tmp_path, kind):
    rows = write(tmp_path, {"": 4})
    manifest = kind == "manifest"
    source = write_manifest(tmp_path / "list.csv", rows) if manifest else hf_of(tmp_path, rows)
    train = load_data(source, image_size=16).train
    images = torch.cat([x for x, _ in DataLoader(train, batch_size=2, num_workers=2)])
    assert torch.equal(images, torch.stack([x for x, _ in train]))


# ---- bad input ---------------------------------------------------------------------------------

HEAD = "path,label,classname,split\n"
GOOD = "0.png,0,ant,train\n1.png,1,bee,train\n"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for i in range(6):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + GOOD + "2.png,1,cat,train\n", "line 4: label 1 has two names, 'bee' and 'cat'"),
        (HEAD + GOOD + "2.png,2,bee,train\n", "line 4: class 'bee' has two labels, 1 and 2"),
        (HEAD + GOOD + "2.png,3,cat,train\n", "gaps: no picture has label 2"),
        (HEAD + GOOD + "2.png,2,cat,test\n", r"test images of .*cat \(label 2\).* no train"),
        (HEAD + GOOD + "\n2.png,1,bee\n", "line 5: 3 values for the 4 columns"),
        (HEAD + GOOD + "2.png,1,bee,x\n", "line 4: split must be train, val or test, got 'x'"),
        (HEAD + GOOD + "2.png,-1,bee,test\n", "line 4: label must be a whole number .*'-1'"),
        (HEAD + GOOD + "2.png,1.0,bee,test\n", "line 4: label must be a whole number .*'1.0'"),
        (HEAD + GOOD + "2.png,,bee,test\n", "line 4: label must be .*''"),
        (HEAD + GOOD + "2.png,1, ,test\n", "line 4: classname must be a text"),
        (HEAD + GOOD + ",1,bee,test\n", "line 4: path must be a text"),
        (HEAD + GOOD + "./1.png,1,bee,test\n", "line 4: './1.png' is in line 3 already"),
        (HEAD + GOOD + '"2.png,1,bee,test\n', "line 4: not valid CSV"),
        ("path,label,splits\n0.png,0,train\n", "line 2: the columns must be path, .*splits"),
        ("0.png,ant\n1.png,bee\n", "line 2: the columns must be path"),
        ("path,path,label\n0.png,0.png,1\n", "line 1: a column is named twice"),
        (HEAD, "lists no pictures"),
        ('{"path": "0.png", "label": 0}\n{"path": "1.png"\n', "line 2: not valid JSON"),
        ('{"path": "0.png", "label": 0}\n[1]\n', "line 2: must be a JSON object"),
        ('{"path": "0.png", "label": true}\n', "line 1: label must be a whole number"),
        ('{"path": 3, "label": 0}\n', "line 1: path must be a text .*3"),
        (
            '{"path": "0.png", "label": 0}\n{"path": "1.png", "classname": "a"}\n',
            "line 2: either all pictures or none have a label",
        ),
        (
            '{"path": "0.png", "label": 0, "split": "train"}\n{"path": "1.png", "label": 1}\n',
            "line 2: either all pictures or none have a split",
        ),
    ],
)
def test_a_bad_row_is_told_with_its_number(few, text, message):
    file = few / f"bad.{'jsonl' if text[0] == '{' else 'csv'}"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^data: {file}.* ?{message}"):
        load_data(file)


def test_missing_pictures_and_names_are_told(few):
    file = few / "list.csv"
    with pytest.raises(FileNotFoundError, match=r"^data: the manifest .*none\.csv"):
        load_data(few / "none.csv")
    file.write_text(HEAD + GOOD + "7.png,1,bee,test\n8.png,1,bee,test\n")
    with pytest.raises(FileNotFoundError, match=r"^data: .*line 4: .*'7.png'.*2 of the 4.*root"):
        load_data(file)
    file.write_text("path,label\n0.png,0\n1.png,1\n")
    with pytest.raises(ValueError, match=r"^classnames: .*2 classes.* column classname"):
        load_data(file)
    with pytest.raises(ValueError, match=r"^data: .*too few images .*'0'.*at least 3"):
        _ = load_data(file, classnames=["ant", "bee"]).train
    (few / "latin.csv").write_bytes(b"path,classname\n\xe9.png,a\n")
    with pytest.raises(ValueError, match=r"^data: .*latin\.csv is not a UTF-8"):
        load_data(few / "latin.csv")


def test_more_shots_than_a_class_has_are_told(tmp_path, caplog):
    rows = write(tmp_path, {"": 8})
    file = write_manifest(tmp_path / "list.csv", rows)
    assert len(load_data(file, image_size=16, shots=6).train) == 15
    assert "fewer than 6 training images, of which all are taken: 'ant (5)'" in caplog.text


def test_a_broken_picture_of_a_manifest_is_named_or_left_out(tmp_path):
    file = write_manifest(tmp_path / "list.csv", write(tmp_path, {"": 8}))
    broken = load_data(file, image_size=16).test.data.files[0]
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=f"^data: {broken} .*on_error='skip'"):
        _ = load_data(file, image_size=16).train
    assert load_data(file, image_size=16, on_error="skip").test.unreadable == 1


def test_hugging_face_data_that_does_not_fit_is_told(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = hf_of(tmp_path, write(tmp_path, {"": 3}))
    label = data.features["label"]
    test, other = data.select([8]), datasets.ClassLabel(names=["ant", "rat", "cat"])
    bad = {
        "stream.*streaming=True": data.to_iterable_dataset(),
        "transform.*reset_format": data.with_transform(lambda batch: batch),
        "one column of the type Image, got 0 .*label: ClassLabel": data.select_columns(["label"]),
        "ClassLabel, got 0 .*label: Value.*class_encode_column": data.cast_column(
            "label", datasets.Value("int64")
        ),
        "ClassLabel, got 2 .*remove_columns": data.add_column(
            "coarse", data[:]["label"]
        ).cast_column("coarse", label),
        r"row 1 of the train split .* no label \(-1\)": datasets.Dataset.from_dict(
            {"image": data[:2]["image"], "label": [0, -1]}, features=data.features
        ),
        r"test images of .*cat \(label 2\).* no train": datasets.DatasetDict(
            {"train": data.select(range(6)), "test": test}
        ),
        r"no images of the classes 'cat \(label 2\)'": data.select(range(6)),
        "two test splits": datasets.DatasetDict({"test": test, "testing": test}),
        "the splits 'train', 'extra'": datasets.DatasetDict({"train": data, "extra": test}),
        "other classes.*'rat'": datasets.DatasetDict(
            {"train": data, "test": test.cast_column("label", other)}
        ),
    }
    for message, given in bad.items():
        with pytest.raises((ValueError, TypeError), match=f"(?s)^data: .*{message}"):
            load_data(given)
    for name in ("hf:", f"hf:{tmp_path / 'none'}"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"^data: .*(NAME|load)"):
            load_data(name)


def test_a_broken_row_is_named_or_left_out(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = hf_of(tmp_path, write(tmp_path, {"": 8}))
    images = data.cast_column("image", datasets.Image(decode=False))[:]["image"]
    row = load_data(data, image_size=16).test.data._rows[0]
    for broken in ({"bytes": b"no picture", "path": None}, None):
        images[row] = broken
        changed = datasets.Dataset.from_dict(
            {"image": images, "label": data[:]["label"]}, features=data.features
        )
        with pytest.raises(ValueError, match=f"^data: train row {row} is unreadable"):
            _ = load_data(changed, image_size=16).train
        left = load_data(changed, image_size=16, on_error="skip").test
        assert (left.unreadable, len(left)) == (1, 5)


def test_the_extra_is_named_if_datasets_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"^data: .*pip install 'fastprompt\[datasets\]'"):
        load_data("hf:saved")
