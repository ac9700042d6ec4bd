"""Each protocol end to end, with a bundled model on real pictures."""

import csv
import json
import math
import shutil

import pytest
from helpers.coop_trees import CUT
from PIL import Image

from fastprompt import protocols
from fastprompt.evaluation import Evaluation

MODEL = "tiny-photos"
FOLDER, IMAGES, SPLIT = "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"
CLASSES = 20
OPTIONS = {
    "clip": MODEL,
    "seeds": (1, 2),
    "attacks": "clean,pgd-2",
    "eps": "1/255",
    "limit": 8,
    "sanity": "off",
    "settings": {"all": {"epochs": 1, "steps": 1, "augment": True, "crops": "exact"}},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, object]:
    """20 classes of Caltech101 in CoOp's layout, 20 others in a manifest, and the first in gray."""
    root = tmp_path_factory.mktemp("sets")
    items = json.loads((CUT / FOLDER / SPLIT).read_text())
    shutil.copytree(CUT / FOLDER / IMAGES, root / FOLDER / IMAGES)
    first = {part: [x for x in rows if x[1] < CLASSES] for part, rows in items.items()}
    (root / FOLDER / SPLIT).write_text(json.dumps(first))
    others = [
        (f"{FOLDER}/{IMAGES}/{path}", label - CLASSES, name.replace("_", " "), part)
        for part, rows in items.items()
        for path, label, name in rows
        if label >= CLASSES
    ]
    gray = []
    for path, label, name in first["test"]:
        file = root / "gray" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(root / FOLDER / IMAGES / path) as picture:
            picture.convert("L").save(file)
        gray.append((f"gray/{path}", label, name.replace("_", " "), "test"))
    for name, rows in (("others", others), ("gray", gray)):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "classname", "split"), *rows])
    return {name: str(root / f"{name}.csv") for name in ("others", "gray")} | {"root": root}


def run(out, protocol, sets, data, methods="zero-shot,apt,nap", **changes):
    table = protocols.run(
        protocol,
        methods,
        ["coop:Caltech101", *data],
        root=sets["root"],
        out=out,
        progress=False,
        **{**OPTIONS, **changes},
    )
    for row in table.rows:
        for column in table.columns:
            mean, std = row.mean(column), row.std(column)
            assert mean is not None
            assert 0 <= mean <= 1
            assert (std is None) == (row.method == "zero-shot")
            assert std is None or math.isfinite(std)
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        assert (out / name).stat().st_size > 0
    return table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_few_shot(sets, tmp_path):
    table = run(tmp_path / "out", "few-shot", sets, [], "zero-shot,apt")
    assert table.columns == ["1", "2", "4", "8", "16", "all"]
    assert len(table.rows) == 2 * 2
    assert len(list((tmp_path / "out/cells").iterdir())) == 1 + 6 * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_base_to_new(sets, tmp_path):
    table = run(tmp_path / "out", "base-to-new", sets, [sets["others"]], shots=(2,))
    assert table.columns == ["base", "new", "H"]
    assert list(dict.fromkeys(row.data for row in table.rows)) == [
        *("Caltech101", "others.csv", "average")
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cross_dataset(sets, tmp_path):
    table = run(tmp_path / "out", "cross-dataset", sets, [sets["others"]], shots=(2,))
    assert table.columns == ["Caltech101", "others.csv", "average"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_domain_shift(sets, tmp_path):
    table = run(tmp_path / "out", "domain-shift", sets, [sets["gray"]], shots=(2,))
    assert table.columns == ["Caltech101", "gray.csv", "average"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_autoattack_in_a_cell(sets, tmp_path):
    changes = {"shots": (1,), "seeds": (1,), "attacks": "clean,autoattack", "eps": "4/255"}
    made = protocols.make_plan(
        "few-shot", "apt", "coop:Caltech101", root=sets["root"], **{**OPTIONS, **changes}
    )
    table = protocols.execute(made, tmp_path / "out", progress=False)
    (result,) = (tmp_path / "out/cells").rglob("result.json")
    clean, robust = Evaluation.load(result).rows
    assert robust["attack"] == "autoattack"
    assert table.mean("apt", "1", "autoattack at 4/255") == robust["accuracy"]
    assert robust["accuracy"] < clean["accuracy"]
