"""Small data sets in CoOp's layouts, pickles as CoOp writes them, and Dassl's few-shot draw."""

import io
import json
import os
import pickle
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

Entry = tuple[str, int, str]  # path, label, class name
Items = dict[str, list[Entry]]  # by split

# of each set with a split file: dir, images under, split file, class names in the file
SPLIT_SETS: Mapping[str, tuple[str, str, str, tuple[str, ...]]] = {
    "Caltech101": (
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        ("face", "car_side", "yin_yang"),
    ),
    "OxfordPets": (
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        ("abyssinian", "american_bulldog", "beagle"),
    ),
    "StanfordCars": (
        "stanford_cars",
        ".",
        "split_zhou_StanfordCars.json",
        ("2012 AM General Hummer", "2012 Acura RL Sedan", "2001 Acura TSX"),
    ),
    "Flowers102": (
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        ("pink primrose", "sweet pea", "tiger lily"),
    ),
    "Food101": (
        "food-101",
        "images",
        "split_zhou_Food101.json",
        ("apple_pie", "baklava", "waffles"),
    ),
    "SUN397": ("sun397", "SUN397", "split_zhou_SUN397.json", ("abbey", "indoor bow", "zen garden")),
    "DTD": (
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        ("banded", "blotchy", "zigzagged"),
    ),
    "EuroSAT": (
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        ("Annual Crop Land", "Forest", "Sea or Lake"),
    ),
    "UCF101": (
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        ("Apply_Eye_Makeup", "Archery", "Yo_Yo"),
    ),
}
EACH = {"train": 6, "val": 5, "test": 2}
IDS = ("n01440764", "n01443537", "n04356056")


CUT = Path(__file__).parents[1] / "data" / "coop"  # 40 classes of Caltech101


def caltech(which: str) -> Path:
    """The root of Caltech101 in CoOp's layout: the committed ``"cut"``, or the ``"whole"`` set."""
    if which == "cut":
        return CUT
    root = Path(os.environ.get("FASTPROMPT_DATA", ""))
    if not os.environ.get("FASTPROMPT_DATA") or not (root / "caltech-101").is_dir():
        pytest.skip("FASTPROMPT_DATA does not name a folder with caltech-101")
    return root


def picture() -> bytes:
    """A small JPEG file."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 80, 40)).save(file, "JPEG")
    return file.getvalue()


def fill(folder: Path, names: Iterable[str]) -> None:
    """Write a picture under each name."""
    content = picture()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def entries(classes: Sequence[str], each: Mapping[str, int] = EACH) -> Items:
    """Pictures of each class in each split; the order of the classes is not that of the labels."""
    out: Items = {}
    for part, n in each.items():
        out[part] = [
            (f"{name}/{part}_{i}.jpg", label, name)
            for label, name in reversed(list(enumerate(classes)))
            for i in range(n)
        ]
    return out


def write_split(root: Path, name: str, items: Items | None = None) -> Items:
    """Write a set with a split file, and return its entries."""
    folder, images, file, classes = SPLIT_SETS[name]
    items = entries(classes) if items is None else items
    fill(root / folder / images, (entry[0] for part in items.values() for entry in part))
    (root / folder / file).write_text(json.dumps(items))
    return items


def write_aircraft(root: Path) -> None:
    """Write FGVCAircraft, whose splits are text files."""
    folder, names = root / "fgvc_aircraft", ("707-320", "A300B4", "Boeing 717")
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(names) + "\n")
    number = 1000
    for part, n in EACH.items():
        lines = []
        for name in reversed(names):
            for _ in range(n):
                number += 1
                lines.append(f"00{number} {name}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
        fill(folder / "images", (f"{line.split()[0]}.jpg" for line in lines))


def write_classnames(folder: Path, ids: Sequence[str] = IDS) -> None:
    """Write ``classnames.txt``; ImageNet's list has ``sunglasses`` twice."""
    folder.mkdir(parents=True, exist_ok=True)
    spoken = ("tench", "goldfish", "sunglasses", "sunglasses")
    lines = [f"{i} {name}\n" for i, name in zip(ids, spoken, strict=False)]
    (folder / "classnames.txt").write_text("".join(lines))


def write_imagenet(root: Path, train: int = 6, val: int = 2) -> None:
    """Write ImageNet with three classes."""
    write_classnames(root / "imagenet")
    for part, n in (("train", train), ("val", val)):
        names = (f"{wnid}/{wnid}_{i}.JPEG" for wnid in IDS for i in range(n))
        fill(root / "imagenet" / "images" / part, names)


# ---- few shots ---------------------------------------------------------------------------------


def dassl_draw(
    items: Items, shots: int, seed: int, parts: Sequence[str] = ("train", "val")
) -> Items:
    """Draw as Dassl's ``generate_fewshot_dataset`` does, from Python's global random numbers."""
    state = random.getstate()
    random.seed(seed)
    out: Items = {}
    for part in parts:
        tracker = defaultdict(list)
        for item in items[part]:
            tracker[item[1]].append(item)
        n = shots if part == "train" else min(shots, 4)
        out[part] = []
        for of_class in tracker.values():
            out[part] += random.sample(of_class, n) if len(of_class) >= n else of_class
    random.setstate(state)
    return out


DASSL = "dassl.data.datasets.base_dataset"


def datum_class(module: str = DASSL) -> type:
    """A class like Dassl's ``Datum``, in a module that no one can import."""

    class Datum:
        def __init__(self, path: str, label: int, name: str) -> None:
            self._impath, self._label, self._domain, self._classname = path, label, 0, name

    Datum.__module__, Datum.__qualname__ = module, "Datum"
    return Datum


def pickled(content: Any, cls: type, protocol: int = pickle.HIGHEST_PROTOCOL) -> bytes:
    """Pickle objects of a `datum_class`, whose module exists only meanwhile."""
    parts = cls.__module__.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    try:
        for name in names:
            sys.modules[name] = ModuleType(name)
        setattr(sys.modules[names[-1]], cls.__name__, cls)
        return pickle.dumps(content, protocol=protocol)
    finally:
        for name in names:
            del sys.modules[name]


def write_pickle(
    folder: Path,
    picked: Items,
    shots: int,
    seed: int,
    prefix: str = "/their/disk/images/",
    protocol: int = pickle.HIGHEST_PROTOCOL,
) -> Path:
    """Write a few-shot file as CoOp does, with absolute paths of another machine."""
    datum = datum_class()
    content = {
        part: [datum(f"{prefix}{path}", label, name) for path, label, name in items]
        for part, items in picked.items()
    }
    path = folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickled(content, datum, protocol))
    return path
