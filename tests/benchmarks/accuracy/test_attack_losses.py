"""The comparison of attack losses and objectives: its cells, a tiny run, and its resumption."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from helpers.models import small_model

from benchmarks.accuracy.methods import attack_losses
from fastprompt.clip import bundled
from fastprompt.data.builtin import WORLDS, draw_split
from fastprompt.methods.registry import TUNERS

MODEL, DATA = "tiny-shapes-robust", "shapes"


def test_every_pair_is_a_cell_whose_settings_are_valid():
    every = list(attack_losses.cells(MODEL, DATA, attack_losses.METHODS, (0, 1)))
    assert len({cell.name for cell in every}) == len(every) == 1 + 2 * 3 * 2 * 6
    for cell in every[1:]:
        kind = TUNERS[cell.method]
        config = kind.Config(**{**kind.presets[MODEL], **cell.settings})
        assert (config.attack_loss, config.objective) == (cell.attack_loss, cell.objective)
        assert config.attacked_loss == cell.attack_loss


def test_no_test_image_is_read():
    assert ".test" not in Path(attack_losses.__file__).read_text("utf-8")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Six classes, a small model, weak attacks, three pairs, and folders of the test's own."""
    few = {"train": 16, "val": 4, "test": 8}
    six = replace(WORLDS[DATA], classnames=WORLDS[DATA].classnames[:6], sizes=few)
    monkeypatch.setitem(WORLDS, DATA, six)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    drawn = cache(draw_split.__wrapped__)
    monkeypatch.setattr("fastprompt.data.find.draw_split", drawn)
    for name, value in {
        "FOLDER": tmp_path / "runs",
        "RESULT": tmp_path / "result.json",
        "ATTACKS": ("pgd-1", "pgd-2"),
        "SHOTS": 1,
    }.items():
        monkeypatch.setattr(attack_losses, name, value)
    whole = attack_losses.cells
    chosen = {("ce", "ce"), ("mixed", "ce"), ("kl", "trades"), ("", "")}
    monkeypatch.setattr(
        attack_losses,
        "cells",
        lambda *a, **k: (c for c in whole(*a, **k) if (c.attack_loss, c.objective) in chosen),
    )
    return tmp_path


def measure(methods=("ampt",)):
    changes = '{"epochs": 1, "steps": 1, "n_ctx": 2, "n_prompts": 2, "precision": "fp32"}'
    attack_losses.measure(MODEL, DATA, methods, eps=["2/255"], images=8, changes=changes)


def test_a_tiny_run_is_written_cell_by_cell_and_resumes(tiny, monkeypatch, capsys):
    real, judged = attack_losses.judge, []

    def judge(cell):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(cell.name)
        return real(cell)

    monkeypatch.setattr(attack_losses, "judge", judge)
    with pytest.raises(KeyboardInterrupt):
        measure()
    files = sorted((tiny / "runs" / "cells").iterdir())
    assert [file.stem for file in files] == sorted(judged)
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(attack_losses, "judge", real)
    measure()
    assert [file.read_bytes() for file in files] == before
    attack_losses.collect()
    rows = json.loads((tiny / "result.json").read_text("utf-8"))["cells"]
    assert len(rows) == 4
    for row in rows:
        found = {r["attack"]: r["accuracy"] for r in row["rows"]}
        assert found["both"] <= min(found["pgd-1"], found["pgd-2"]) <= found["clean"]
        assert row["n"] == 8
    trades = next(row for row in rows if row["objective"] == "trades")
    assert trades["config"]["clean_share"] == 0.5
    capsys.readouterr()
    attack_losses.table()
    out = capsys.readouterr().out
    assert out.count("ampt") == 3
    assert "both 2/255" in out
    head, *lines = attack_losses.lines(rows)
    named = {
        (cells["objective"], cells["attack_loss"]): cells
        for cells in (dict(zip(head, line, strict=True)) for line in lines)
    }
    assert "clean_share=0.5" in named["trades", "kl"]["changes"]
    assert "clean_share" not in named["ce", "ce"]["changes"]
    assert named["ce", "ce"]["both 2/255, difference"] == ""
    flags = {
        key: attack_losses._flags([row], "2/255", "both")
        for key, row in (((row["objective"], row["attack_loss"]), row) for row in rows)
    }
    for key in (("ce", "mixed"), ("trades", "kl")):
        each = [a - b for a, b in zip(flags[key], flags["ce", "ce"], strict=True)]
        text = named[key]["both 2/255, difference"]
        assert text == "" if not any(each) else text.startswith(f"{sum(each) / len(each):+.1f} ± ")
    # what the result file contains is not measured again
    monkeypatch.setattr(attack_losses, "FOLDER", tiny / "elsewhere")
    measure()
    assert not (tiny / "elsewhere").exists()


def test_runs_that_were_judged_otherwise_are_not_averaged():
    one = {"model": "m", "method": "nap", "objective": "ce", "attack_loss": "ce", "changes": "{}"}
    rows = [
        {
            **one,
            "images": len(flags),
            "search": "own",
            "rows": [
                {"eps": eps, "attack": attack, "flags": flags}
                for eps, attack in (("", "clean"), ("1/255", "both"))
            ],
        }
        for flags in ("1100", "10")
    ]
    found = [line[5:9] for line in attack_losses.lines(rows)[1:]]
    assert found == [["4", "1", "50.0", "50.0"], ["2", "1", "50.0", "50.0"]]


def test_the_difference_from_the_published_pair_has_the_interval_over_the_images():
    one = {"model": "m", "method": "nap", "changes": "{}", "images": 4, "search": "own"}
    rows = [
        {
            **one,
            "objective": "ce",
            "attack_loss": loss,
            "rows": [{"eps": "1/255", "attack": "both", "flags": flags}],
        }
        for loss, flags in (("ce", "1000"), ("dlr", "1110"))
    ]
    # differences of 0, 100, 100, 0 points: mean 50, standard deviation 57.7
    assert [line[-1] for line in attack_losses.lines(rows)[1:]] == ["", "+50.0 ± 56.6"]
