"""The protocols on Caltech101: finished cells get into the file, and the file into the tables."""

import json
import statistics

import pytest
from helpers.coop_trees import CUT
from helpers.models import small_model

from benchmarks.accuracy import caltech
from benchmarks.common.paths import ROOT
from fastprompt.clip import bundled
from fastprompt.protocols import make_plan
from fastprompt.tuning.config import as_dict

LITTLE = {"epochs": 1, "steps": 1, "n_ctx": 2, "warmup_epochs": 0, "precision": "fp32"}


@pytest.fixture
def small(monkeypatch):
    """Two methods, one seed, one shot, few test images, and a small model."""
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    monkeypatch.setattr(caltech, "METHODS", ("zero-shot", "apt"))
    monkeypatch.setattr(caltech, "SHOTS", {"few-shot": (1,), "base-to-new": (1,)})
    less = {"seeds": (1,), "limit": 4, "settings": {"all": LITTLE}}
    monkeypatch.setattr(caltech, "OPTIONS", {**caltech.OPTIONS, **less})


def test_finished_cells_are_collected(small, tmp_path, capsys):
    runs, out = str(tmp_path / "runs"), str(tmp_path / "caltech101.json")
    caltech.measure(str(CUT), "few-shot", runs)
    caltech.collect(str(CUT), runs, out)
    found = json.loads((tmp_path / "caltech101.json").read_text())
    cells = [(r["method"], r["shots"], r["seed"]) for r in found["few-shot"]]
    assert cells == [("zero-shot", None, None), ("apt", 1, 1)]
    assert all(0 <= r["pgd-20"] <= r["clean"] <= 1 for r in found["few-shot"])
    assert found["base-to-new"] == []
    assert caltech.text(found) in capsys.readouterr().out


def test_nap_and_ampt_have_the_settings_that_the_pages_name():
    settings = caltech.OPTIONS["settings"]
    plan = make_plan("few-shot", ["nap", "ampt"], "coop:Caltech101", root=CUT, settings=settings)
    assert as_dict(plan.configs["ampt"])["attack_loss"] == "ce"
    config = as_dict(plan.configs["nap"])
    named = {"epochs": 3, "adv_share": 0.5, "text_refiners": False, "attack_loss": "ce"}
    assert config | named | {"eps": 2 / 255} == config
    for page in ("guides/protocols.md", "results_photos.md"):
        words = " ".join((ROOT / "docs" / page).read_text("utf-8").split())
        assert "radius 2/255, 3 epochs, `adv_share=0.5`" in words


def row(method, column, clean, robust, seed=1, shots=None):
    own = {"method": method, "column": column, "seed": seed, "shots": shots}
    return {**own, "clean": clean, "pgd-20": robust}


def test_tables_have_means_and_deviations_over_the_seeds():
    few = [row("nap", "", c, 0.25, seed, 4) for seed, c in ((1, 0.5), (2, 0.7))]
    zero = row("zero-shot", "", 0.5, 0.25)
    parts = [row("apt", part, c, 0.5) for part, c in (("base", 0.6), ("new", 0.4))]
    said = caltech.text({"few-shot": [zero, *few], "base-to-new": parts})
    assert "| zero-shot | 50.0 | 50.0 | 50.0 | 25.0 | 25.0 | 25.0 |  |" in said
    assert "| nap | - | 60.0 ± 14.1 | - | - | 25.0 ± 0.0 | - | 0, 2 |" in said
    assert "| apt | 60.0 | 40.0 | 48.0 | 50.0 | 50.0 | 50.0 | 1 |" in said


RESULT = json.loads(caltech.RESULT.read_text("utf-8"))
TUNED = caltech.METHODS[1:]


def test_every_cell_of_both_protocols_is_in_the_committed_file():
    few = [(r["method"], r["shots"], r["seed"]) for r in RESULT["few-shot"]]
    tuned = [(m, n, seed) for m in TUNED for n in (1, 4, 16) for seed in caltech.SEEDS]
    assert sorted(few, key=str) == sorted([("zero-shot", None, None), *tuned], key=str)
    new = [(r["method"], r["seed"], r["column"]) for r in RESULT["base-to-new"]]
    both = [(m, seed) for m in TUNED for seed in caltech.SEEDS]
    wanted = [(*of, part) for of in (("zero-shot", None), *both) for part in ("base", "new")]
    assert sorted(new, key=str) == sorted(wanted, key=str)


def test_what_the_pages_read_from_the_tables():
    def few(method, shots, accuracy):
        rows = [r for r in RESULT["few-shot"] if (r["method"], r["shots"]) == (method, shots)]
        return statistics.mean(100 * r[accuracy] for r in rows)

    def new(method, accuracy, column="new"):
        rows = [r for r in RESULT["base-to-new"] if r["method"] == method]
        return statistics.mean(caltech._by_seed(rows, column, accuracy).values())

    for accuracy in (caltech.CLEAN, caltech.ROBUST):
        bare = few("zero-shot", None, accuracy)
        gains = {m: few(m, 16, accuracy) - bare for m in TUNED}
        assert sorted(gains, key=gains.get)[-2:] == ["capt", "nap"]
        assert gains["nap"] > gains["capt"] + 2 > 3
        assert all(abs(gains[m]) < 2.2 for m in ("advpt", "apt", "ampt"))
    bare = few("zero-shot", None, caltech.ROBUST)
    assert all(few(m, 1, caltech.ROBUST) < bare for m in TUNED)
    assert [m for m in TUNED if few(m, 4, caltech.ROBUST) > bare] == ["nap"]
    assert new("nap", caltech.CLEAN) < new("zero-shot", caltech.CLEAN)
    assert new("nap", caltech.ROBUST) > new("zero-shot", caltech.ROBUST)
    means = {m: new(m, caltech.CLEAN, "H") for m in caltech.METHODS}
    assert max(means, key=means.get) == "capt"
