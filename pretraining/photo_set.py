"""Makes the data set `photos`, pictures of Caltech101 that the package contains.

    python -m pretraining.photo_set --help

The training pictures are those that the models of the photographs never see.
"""

import io
import json
import random
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from PIL import Image

from fastprompt._utils.files import write_bytes
from fastprompt.data.coop import CoOpData, find_coop
from fastprompt.data.decode import decode

from .photo_data import DRAW_SEED, SHOTS, SIZE, shipped_rows

TESTED = 8  # test pictures of each class
_QUALITY = 88
_DATE = (2026, 1, 1, 0, 0, 0)  # equal pictures give equal bytes


def chosen_rows(coop: CoOpData) -> dict[str, list[int]]:
    """Return the rows of each split that the package contains."""
    splits = coop.content.splits
    drawn = {part: coop.rows(part, SHOTS, DRAW_SEED) or [] for part in ("train", "val")}
    by_label = defaultdict(list)
    for row, label in enumerate(splits["test"].labels):
        by_label[label].append(row)
    stream = random.Random(DRAW_SEED)
    return {
        "train": sorted(shipped_rows(splits["train"].labels, drawn["train"])),
        "val": sorted(drawn["val"]),
        "test": sorted(row for rows in by_label.values() for row in stream.sample(rows, TESTED)),
    }


def small_webp(picture: Image.Image) -> bytes:
    """Return a picture whose shorter side has 64 pixels, as WebP: of JPEG's size, but nearer."""
    shorter = min(picture.size)
    width, height = (SIZE * side // shorter for side in picture.size)
    out = io.BytesIO()
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    small.save(out, "WEBP", quality=_QUALITY, method=6)
    return out.getvalue()


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a zip file of pictures, which are not compressed again."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, kind)
    return out.getvalue()


def photo_set(root: Path) -> bytes:
    """Return the zip file, in CoOp's layout but for the suffixes, of the Caltech101 in ``root``."""
    coop = find_coop("Caltech101", root)
    spec, names = coop.spec, coop.content.classnames
    split: dict[str, list[tuple[str, int, str]]] = {}
    pictures = {}
    for part, rows in chosen_rows(coop).items():
        listing = coop.content.splits[part]
        split[part] = []
        for row in rows:
            name, label = listing.names[row], listing.labels[row]
            stored = PurePosixPath(name).with_suffix(".webp").as_posix()
            split[part].append((stored, label, names[label]))
            content = small_webp(decode(coop.images / name))
            pictures[f"{spec.folder}/{spec.images}/{stored}"] = content
    listed = json.dumps(split, separators=(",", ":")).encode()
    return pack({f"{spec.folder}/{spec.split}": listed, **pictures})


def main(
    data: Path = Path("../shared/data"),
    out: Path = Path("fastprompt/assets/photos.zip"),
) -> None:
    """Make the data set of ``caltech-101.zip`` in the folder ``data``."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(data / "caltech-101.zip") as archive:
            archive.extractall(folder)
        write_bytes(out, photo_set(Path(folder)))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
