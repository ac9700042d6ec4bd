"""The same pictures as an image folder, a manifest and WebDataset shards."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PARTS = ("train", "val", "test")
NAMES = ["ant", "bee", "cat"]
FORM = {"image_size": 48, "shots": 2}


def write(root: Path, parts: dict[str, int]) -> list[dict[str, str]]:
    """Write pictures, as ``n`` per class of each part; return the rows of a manifest of them."""
    noise, rows = np.random.default_rng(0), []
    for part, n in parts.items():
        for name in NAMES:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = noise.integers(0, 256, (16, 20, 3), dtype=np.uint8)
                file = folder / f"{i}.{'jpg' if i % 2 else 'png'}"
                Image.fromarray(pixels).save(file)
                path = file.relative_to(root).as_posix()
                rows.append({"path": path, "classname": name} | ({"split": part} if part else {}))
    return rows


def write_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


def assert_equal(data, wanted) -> None:
    assert data.classnames == wanted.classnames
    for part in PARTS:
        one, two = getattr(data, part), getattr(wanted, part)
        assert one.fingerprint == two.fingerprint, part
        assert len(one) == len(two)
        for (image, label), (other, its) in zip(one, two, strict=True):
            assert torch.equal(image, other)
            assert label == its


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar file; the times and owners of its files are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def label_file(kind: str, row: Mapping[str, str]) -> tuple[str, bytes]:
    """The extension and content of a sample's label, as its kind is written."""
    label, name = NAMES.index(row["classname"]), row["classname"]
    text = {
        "cls": str(label),
        "txt": f"{name}\n",
        "json": json.dumps({"label": label, "classname": name, "width": 20}),
        "json-name": json.dumps({"classname": name}),
    }[kind]
    return kind.partition("-")[0], text.encode()


def samples_of(root: Path, rows: list[dict[str, str]], kind: str) -> list[tuple[str, bytes]]:
    """The files of shards with the pictures of a manifest's rows, sample by sample."""
    files = []
    for key, row in enumerate(rows):
        picture = root / row["path"]
        extension, label = label_file(kind, row)
        files.append((f"{key:06d}{picture.suffix.upper()}", picture.read_bytes()))
        files.append((f"{key:06d}.{extension}", label))
    return files
