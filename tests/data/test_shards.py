"""WebDataset shards: equal to an image folder with the same pictures; bad shards are told."""

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.picture_sources import FORM, NAMES, assert_equal, samples_of, write, write_tar
from PIL import Image
from torch.utils.data import DataLoader

from fastprompt import evaluate, load_clip
from fastprompt.data import load_data, tar_shards
from fastprompt.data.load import load_recorded

KINDS = pytest.mark.parametrize("kind", ["cls", "txt", "json", "json-name"])


def options_of(kind: str) -> dict[str, object]:
    return dict(FORM) | ({"classnames": NAMES} if kind == "cls" else {})


def write_shards(folder: Path, pattern: str, files: list, n: int = 3) -> Path:
    """Write samples, two files each, to ``n`` shards."""
    each = 2 * -(-len(files) // (2 * n))
    for i in range(n):
        write_tar(folder / pattern.format(f"{i:03d}"), files[each * i : each * (i + 1)])
    return folder


# ---- equality ----------------------------------------------------------------------------------


@KINDS
def test_shards_are_equal_to_the_folder(tmp_path, monkeypatch, kind):
    pictures, shards = tmp_path / "pictures", tmp_path / "shards"
    rows = write(pictures, {"": 8})
    rows.sort(key=lambda row: Path(row["path"]).name)  # the classes are interleaved
    write_shards(shards, "birds-{}.tar", samples_of(pictures, rows, kind))
    folder, options = load_data(pictures, **FORM), options_of(kind)
    for name in (shards, shards / "birds-{000..002}.tar", shards / "birds-*.tar"):
        assert_equal(load_data(name, **options), folder)
    monkeypatch.chdir(shards)
    data = load_data("birds-{000..002}.tar", **options)
    assert_equal(data, folder)
    assert data.train.files[0].startswith("birds-00")
    monkeypatch.chdir("/")
    again = load_recorded(json.loads(json.dumps(data.train.source)))
    assert again.train.fingerprint == folder.train.fingerprint


@pytest.mark.parametrize("place", ["{part}/{{}}.tar", "birds-{part}-{{}}.tar"])
@KINDS
def test_splits_are_those_of_the_folders_or_names(tmp_path, place, kind):
    pictures, shards = tmp_path / "pictures", tmp_path / "shards"
    rows = write(pictures, {"train": 4, "val": 2, "test": 2})
    for part in ("train", "val", "test"):
        own = [row for row in rows if row["split"] == part]
        name = "validation" if part == "val" else part
        write_shards(shards, place.format(part=name), samples_of(pictures, own, kind), 2)
    folder = load_data(pictures, **FORM)
    assert_equal(load_data(shards, **options_of(kind)), folder)
    pattern = place.format(part="{train,test,validation}").replace("{}", "{000..001}")
    assert_equal(load_data(shards / pattern, **options_of(kind)), folder)


def test_results_are_equal(tmp_path):
    rows = write(tmp_path / "pictures", {"": 8})
    write_shards(tmp_path / "shards", "{}.tar", samples_of(tmp_path / "pictures", rows, "txt"))
    clip, found = load_clip("tiny-shapes"), []
    for source in ("pictures", "shards"):
        data = load_data(tmp_path / source, **FORM)
        model = clip.zero_shot(data.classnames, data.templates)
        options = {"eps": "1/255", "progress": False, "sanity": "off"}
        result = evaluate(model, data.test, ["clean", "pgd-2"], **options)
        rows = [{k: v for k, v in row.items() if "second" not in k} for row in result.rows]
        found.append((rows, result.data["fingerprint"], result.data["labels"]))
    assert found[0] == found[1]


def test_an_image_folder_with_archives_beside_it_stays_one(tmp_path):
    write(tmp_path, {"train": 4, "test": 2})
    alone = load_data(tmp_path, **FORM).test.fingerprint
    write_tar(tmp_path / "train.tar", [])
    assert load_data(tmp_path, **FORM).test.fingerprint == alone


def test_names_that_are_no_samples_are_passed_over(tmp_path):
    rows = write(tmp_path / "pictures", {"": 4})
    files = samples_of(tmp_path / "pictures", rows, "txt")
    deep = [(f"./a.b/{name}", content) for name, content in files]  # a folder's dot ends no key
    extra = [("README", b"."), ("._000000.jpg", b"."), ("./a.b/000011.seg.png", b"no image")]
    write_tar(tmp_path / "shards.tar", [*deep, *extra])
    folder = load_data(tmp_path / "pictures", **FORM)
    assert_equal(load_data(tmp_path / "shards.tar", **FORM), folder)


# ---- processes ---------------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path):
    rows = write(tmp_path / "pictures", {"": 4})
    write_shards(tmp_path / "shards", "{}.tar", samples_of(tmp_path / "pictures", rows, "txt"))
    return load_data(tmp_path / "shards", image_size=16).train


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_shards(train, how):
    wanted = torch.stack([x for x, _ in train])  # the shards are open when the workers start
    loader = DataLoader(train, batch_size=2, num_workers=1, multiprocessing_context=how)
    assert torch.equal(torch.cat([x for x, _ in loader]), wanted)


def test_a_process_opens_its_own_files_and_only_places_are_copied(train, monkeypatch):
    shard = train.data._places[0].shard
    own = tar_shards._opened(os.getpid(), shard)
    assert tar_shards._opened(os.getpid(), shard) is own
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert tar_shards._opened(os.getpid(), shard).number != own.number
    copy = pickle.loads(pickle.dumps(train.data))
    assert copy.content(0) == train.data.content(0)


def test_files_that_are_not_used_are_closed(tmp_path):
    shards = [
        tar_shards.Shard.at(write_tar(tmp_path / f"{i}.tar", [("0.png", b"x")])) for i in range(80)
    ]
    tar_shards._opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    assert all(any(shard.read(0, 512)) for shard in shards)
    assert len(os.listdir("/proc/self/fd")) == before + tar_shards._OPEN


def test_a_shard_is_listed_once_and_again_when_it_changes(tmp_path):
    rows = write(tmp_path / "pictures", {"": 4})
    files = samples_of(tmp_path / "pictures", rows, "txt")
    path = write_tar(tmp_path / "a.tar", files)
    data = load_data(path, image_size=16)
    before = tar_shards.samples.cache_info().misses
    assert len(load_data(path, image_size=16, classes="base").train) > 0
    assert tar_shards.samples.cache_info().misses == before
    tar_shards._opened.cache_clear()
    write_tar(path, files[:-2])
    with pytest.raises(ValueError, match=r"^data: .*a\.tar has changed since it was listed"):
        _ = data.train
    again = load_data(path, image_size=16)
    assert sum(len(again._source.read(part, again.form)[1]) for part in ("train", "val", "test"))
    assert tar_shards.samples.cache_info().misses == before + 1


# ---- bad input ---------------------------------------------------------------------------------


def png(color: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


PNG = png()
GOOD = [("0.png", PNG), ("0.cls", b"0"), ("1.png", PNG), ("1.cls", b" 1\n")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([*GOOD, ("2.png", PNG)], r"has no label of the sample '2'; its files are 2\.png"),
        ([*GOOD, ("2.png", PNG), ("2.json", b"{}")], r"has no label of the sample '2'.*2\.json"),
        ([*GOOD, ("2.cls", b"0")], r"has no image in the sample '2'; its files are 2\.cls"),
        ([*GOOD, ("2.txt", b"0"), ("2.jpg.bin", PNG)], "has no image in the sample '2'"),
        ([*GOOD, ("2.png", PNG), ("2.jpg", PNG)], r"has several images \(png, jpg\) .* '2'"),
        ([*GOOD, ("0.txt", b"x")], "has the sample '0' twice"),
        ([*GOOD, ("1.PNG", PNG)], "has two files 'png' of the sample '1'"),
        ([*GOOD, ("2.png", PNG), ("2.cls", b"one")], "a label of the sample '2' .* 'one' in .cls"),
        ([*GOOD, ("2.png", PNG), ("2.cls", b"-1")], "no whole number from 0: '-1'"),
        ([*GOOD, ("2.png", PNG), ("2.json", b'{"label": true}')], "number from 0: True in .json"),
        ([*GOOD, ("2.png", PNG), ("2.json", b'{"label": 1.0}')], "number from 0: 1.0 in .json"),
        ([*GOOD, ("2.png", PNG), ("2.json", b"[1]")], r"'2\.json', which must be a JSON object"),
        ([*GOOD, ("2.png", PNG), ("2.json", b"{")], r"'2\.json', which is not valid JSON"),
        ([*GOOD, ("2.png", PNG), ("2.txt", b"\xff")], r"'2\.txt', which is no UTF-8 text"),
        ([*GOOD, ("2.png", PNG), ("2.txt", b" ")], "class name of the sample '2' that is no text"),
        (
            [*GOOD, ("2.png", PNG), ("2.cls", b"1"), ("2.json", b'{"label": 0}')],
            "has two labels of the sample '2': 1 in .cls and 0 in .json",
        ),
        (
            [*GOOD, ("2.png", PNG), ("2.txt", b"ant")],
            r"has the image '2\.png': either all pictures or none have a label",
        ),
        ([*GOOD, ("2.png", PNG), ("2.cls", b"3")], "gaps: no picture has label 2"),
        (
            [
                *(("0.png", PNG), ("0.json", b'{"label": 0, "classname": "ant"}')),
                *(("1.png", PNG), ("1.json", b'{"label": 0, "classname": "bee"}')),
            ],
            "'1.png': label 0 has two names, 'ant' and 'bee'",
        ),
        ([("/0.png", PNG)], "has the path '/0.png'; paths must be relative"),
        ([("a/../../0.png", PNG)], r"has the path 'a/\.\./\.\./0.png'"),
        ([], "has no samples"),
    ],
)
def test_a_bad_shard_is_told_with_its_sample(tmp_path, files, message):
    path = write_tar(tmp_path / "bad.tar", files)
    with pytest.raises(ValueError, match=f"^data: (the shard )?{path}.* ?{message}"):
        load_data(path, classnames=["ant", "bee"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_are_refused(tmp_path, kind):
    path = write_tar(tmp_path / "bad.tar", GOOD)
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("2.png")
        member.type, member.linkname = kind, "/etc/hostname"
        tar.addfile(member)
    word = "special" if kind == tarfile.FIFOTYPE else "link"
    with pytest.raises(ValueError, match=rf"^data: the shard .* has the {word}.* '2\.png'"):
        load_data(path)


def test_a_shard_cut_anywhere_is_refused(tmp_path):
    content = write_tar(tmp_path / "whole.tar", GOOD).read_bytes()
    end = 2 * len(GOOD) * 512  # a header and a block of content each
    path = tmp_path / "cut.tar"
    for size in [*range(0, end, 256), end - 1, end, end + 511]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"^data: the shard .*cut\.tar is truncated"):
            load_data(path)
    path.write_bytes(content[: end + 512])
    assert load_data(path, classnames=["ant", "bee"]).classnames == ["ant", "bee"]


def test_damage_and_appended_data_are_refused(tmp_path):
    whole = write_tar(tmp_path / "a.tar", GOOD).read_bytes()
    path = tmp_path / "b.tar"
    for bad, message in {
        b"no tar" * 1000: "truncated, or no tar file",
        whole[:1024] + b"x" * 512 + whole[1536:]: "no end-of-archive mark at byte 1024",
        whole + whole: "data behind its end",
    }.items():
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"^data: the shard .*b\.tar .*{message}"):
            load_data(path)


def test_compressed_shards_are_refused_with_the_reason(tmp_path):
    content = gzip.compress(write_tar(tmp_path / "a.tar", GOOD).read_bytes())
    for name in ("c.tar.gz", "c.tgz", "c.tar"):
        (tmp_path / name).write_bytes(content)
        for given in (tmp_path / name, tmp_path):  # alone, and beside a whole shard
            with pytest.raises(ValueError, match=rf"^data: .*{name} is compressed.*random access"):
                load_data(given)
        (tmp_path / name).unlink()


def test_shards_that_are_missing_or_do_not_fit_together_are_told(tmp_path):
    for name in ("a-000.tar", "a-002.tar", "train-0.tar", "b/0.tar"):
        write_tar(tmp_path / name, GOOD)
    (tmp_path / "c.tar").symlink_to(tmp_path / "a-000.tar")
    for name, message in {
        "none.tar": "the shard .*none.tar.* does not exist",
        "a-{000..002}.tar": r"the shard .*a-001\.tar, 1 of the 3 shards, does not exist",
        "{a-000,c}.tar": "are the same file",
        "{a-000,train-0}.tar": "splits, such as .*train-0.tar, and others, such as .*a-000.tar",
        "a-{0..999999}.tar": "more than 100000 shards",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=f"^data: .*{message}"):
            load_data(tmp_path / name)
    for name in ("https://host/a.tar", "pipe:cat a.tar"):
        with pytest.raises(ValueError, match=r"^data: .* not a local file; download"):
            load_data(name)
    write_tar(tmp_path / "train-test.tar", GOOD)
    with pytest.raises(ValueError, match="names the splits 'test', 'train'; name one"):
        load_data(tmp_path / "train-test.tar")
    (tmp_path / "b").rename(tmp_path / "train")
    with pytest.raises(ValueError, match=r"has folders of shards, and beside them a-000\.tar"):
        load_data(tmp_path)


def test_a_broken_picture_in_a_shard_is_named_or_left_out(tmp_path):
    order = []
    for i in range(16):
        order += [(f"{i}.png", png(i)), (f"{i}.txt", b"bee" if i % 2 else b"ant")]
    path = write_tar(tmp_path / "a.tar", order)
    whole = load_data(path, image_size=16).test
    name = whole.data._places[whole.rows[0]].sample.name
    write_tar(path, [(n, b"no picture" if n == name else c) for n, c in order])
    with pytest.raises(ValueError, match=rf"^data: .*a\.tar/{name} .*on_error='skip'"):
        _ = load_data(path, image_size=16).train
    assert load_data(path, image_size=16, on_error="skip")._draw("test").broken
