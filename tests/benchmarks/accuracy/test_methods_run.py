"""Cells are tuned and judged once; what a stopped process leaves is neither lost nor mixed up."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.accuracy.methods import run
from benchmarks.accuracy.methods.cells import Cell
from fastprompt import APTTuner, evaluate, load_data
from fastprompt.data.builtin import WORLDS, draw_split

QUICK = (("epochs", 1), ("steps", 1), ("n_ctx", 1), ("ctx_init", None))
CELL = Cell("main", "tiny-shapes", "apt", 0, "counts", eps=("2/255",), changes=QUICK)
CELL = replace(CELL, data="counts", shots=1, attacks=("pgd-2",), images=6)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "BATCH", {"counts": 4})
    sizes = {"train": 16, "val": 4, "test": 6}  # of each of 4 classes
    monkeypatch.setitem(WORLDS, "counts", replace(WORLDS["counts"], sizes=sizes))
    monkeypatch.setattr("fastprompt.data.find.draw_split", cache(draw_split.__wrapped__))
    return tmp_path


def tuned(folder):
    (found,) = (folder / "tuned").iterdir()
    return found


def test_a_cell_is_tuned_once_and_its_row_has_what_the_tables_need(folder):
    row = json.loads(json.dumps(run.judge(CELL)))
    assert {"config", "parameters", "step_seconds", "tuning_seconds"} <= row.keys()
    assert {"machine", "weights"} <= row.keys()
    assert [(r["attack"], r["n"]) for r in row["rows"]] == [("clean", 24), ("pgd-2", 6)]
    assert all(len(r["flags"]) == r["n"] for r in row["rows"])
    assert row["reasons"] == []
    before = (tuned(folder) / "prompts.safetensors").stat().st_mtime_ns
    assert run.judge(CELL)["rows"] == run.judge(replace(CELL, part="other"))["rows"]
    assert (tuned(folder) / "prompts.safetensors").stat().st_mtime_ns == before


def test_settings_are_selected_on_validation_images(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        run,
        "evaluate",
        lambda c, images, *a, **k: seen.append(images) or evaluate(c, images, *a, **k),
    )
    row = run.judge(replace(CELL, split="val"))
    val = load_data("counts").val
    assert all(torch.equal(images.images, val.images) for images in seen)
    assert [r["n"] for r in row["rows"]] == [len(val), 6]


def test_a_strong_attack_goes_from_the_largest_radius_to_the_smallest(folder, monkeypatch):
    monkeypatch.setattr(run, "STRONG", ("pgd-2",))
    cell = replace(CELL, eps=("1/255", "4/255"))
    row = run.judge(cell)
    found = [(r["attack"], round(255 * r["eps"])) for r in row["rows"]]
    assert found == [("clean", 0), ("pgd-2", 4), ("pgd-2", 1)]
    assert "withstood_before" in row["rows"][-1]
    last = folder / "judged" / cell.name / "pgd-2-1-255"
    (last / "result.json").unlink()
    assert run.judge(cell)["rows"] == row["rows"]


def test_an_evaluation_that_was_stopped_resumes(folder, monkeypatch):
    whole = run.judge(CELL)
    progress = folder / "judged" / CELL.name / "pgd-2" / "progress.jsonl"
    lines = progress.read_text().splitlines(keepends=True)
    (progress.parent / "result.json").unlink()
    progress.write_text("".join(lines[:-1]))
    assert run.judge(CELL)["rows"] == whole["rows"]


@pytest.mark.parametrize("when", ["fit", "write_json"])
def test_a_tuning_that_was_stopped_leaves_no_run(folder, monkeypatch, when):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((APTTuner, "fit") if when == "fit" else (run, "write_json")), stop)
        with pytest.raises(KeyboardInterrupt):
            run.tune(CELL)
    assert not run._folder(CELL).exists()
    run.tune(CELL)
    assert (run._folder(CELL) / "seconds.json").exists()


def test_prompts_of_another_preset_are_refused(folder, monkeypatch):
    run.tune(CELL)
    preset = {**APTTuner.presets["tiny-shapes"], "lr": 0.5}
    monkeypatch.setattr(APTTuner, "presets", {**APTTuner.presets, "tiny-shapes": preset})
    with pytest.raises(ValueError, match="was tuned with other settings than main-tiny-shapes-apt"):
        run.tune(CELL)


def test_the_bank_moves_with_its_run(folder):
    changes = (("epochs", 1), ("steps", 1))
    cell = replace(CELL, method="advpt", changes=changes)
    prompts = run.tune(cell).prompts.state_dict()
    again = run.tune(cell).prompts.state_dict()
    assert all(torch.equal(prompts[k], again[k]) for k in prompts)
