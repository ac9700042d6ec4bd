"""The comparison on photographs: its record, the verdicts on claims, and the page's tables."""

import json
import math
import statistics

import pytest

from benchmarks.accuracy.methods import cells, photo_cells, photos_page, run
from benchmarks.accuracy.methods.photo_rows import select, standing
from benchmarks.accuracy.methods.results_page import accuracies
from fastprompt import load_clip
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.config import as_dict

EVERY = {cell.name: cell for cell in photo_cells.photo_cells()}
ROWS = run.rows_of(run.PHOTOS)


def test_cells_have_names_of_their_own():
    assert len(EVERY) == len(photo_cells.photo_cells()) > 200


def test_every_row_is_a_cell_that_was_judged_as_said():
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        cell = EVERY[row["name"]]
        assert cells.cell_of(row) == cell
        clean, *attacked = row["rows"]
        assert clean["attack"] == "clean"
        found = [(r["attack"], round(255 * r["eps"])) for r in attacked]
        assert sorted(found) == sorted((a, int(e[0])) for a in cell.attacks for e in cell.eps)
        assert all(r["n"] == cell.images and r["trusted"] for r in attacked)


def test_no_check_of_an_evaluation_failed():
    assert [row["reasons"] for row in ROWS] == [[]] * len(ROWS)


def test_an_accuracy_is_the_share_of_its_flags():
    for row in ROWS:
        for r in row["rows"]:
            assert len(r["flags"]) == r["n"]
            assert r["accuracy"] == r["flags"].count("1") / r["n"]


@pytest.mark.parametrize("model", photo_cells.MODELS)
def test_nap_keeps_eight_points_over_zero_shot_under_autoattack(model):
    """The README says so, and so does the page on choosing a method."""

    def mean(method, seeds, eps, attack):
        cells = select(ROWS, part="strong", model=model, method=method)
        assert [cell["seed"] for cell in cells] == seeds
        return statistics.mean(accuracies(cells, eps, attack))

    at_1, clean = ("1/255", "autoattack"), (None, "clean")
    assert mean("nap", [0, 1, 2], *at_1) >= mean("zero-shot", [0], *at_1) + 8
    assert mean("nap", [0, 1, 2], *clean) >= mean("zero-shot", [0], *clean)


def flags(share, n=100):
    """The first ``share`` percent of the images stand."""
    return "1" * round(share * n / 100) + "0" * (n - round(share * n / 100))


def of_seeds(*values, of=flags):
    return [
        {"rows": [{"attack": "clean", "eps": 0.0, "accuracy": v / 100, "flags": of(v)}]}
        for v in values
    ]


def test_27_25_percent_is_shown_alike_from_an_accuracy_and_from_flags():
    """100 * 0.2725 is more than 27.25: it would be shown as 27.3 beside 27.2 of the same images."""
    cells = of_seeds(27.25, of=lambda share: flags(share, n=400))
    assert accuracies(cells, None) == [statistics.mean(standing(cells, None))] == [27.25]


def test_the_verdict_follows_from_the_interval_over_seeds_and_images():
    mean, half, verdict = photos_page.difference(of_seeds(32, 33, 34), of_seeds(10, 10, 10), None)
    assert (mean, verdict) == (23.0, "seen")
    # a standard deviation of 1 over three seeds; 4.303 is Student's quantile
    each = [0.0] * 10 + [100.0] * 22 + [200 / 3, 100 / 3] + [0.0] * 66
    images = 1.96 * statistics.stdev(each) / 10
    assert half == pytest.approx(math.hypot(4.303 / 3**0.5, images))
    lower = photos_page.difference(of_seeds(10, 10, 10), of_seeds(32, 33, 34), None)
    assert lower[2] == "not seen (lower)"
    within = photos_page.difference(of_seeds(10, 12, 14), of_seeds(11, 11, 11), None)
    assert within[2] == "within noise"
    assert photos_page.difference(of_seeds(10), of_seeds(1), None)[2] == "not yet measured"


def test_a_single_image_shows_nothing_even_if_every_seed_agrees():
    found = photos_page.difference(of_seeds(11, 11, 11), of_seeds(10, 10, 10), None)
    assert found[0] == 1.0
    assert found[2] == "within noise"


CLEAN_NEW = (("zero-shot", 30), ("nap", 12))


def made_up(part, method, seed, label, clean, robust, **facts):
    rows = [{"attack": "clean", "eps": 0.0, "accuracy": clean / 100, "flags": flags(clean)}]
    rows += [
        {"attack": attack, "eps": 1 / 255, "accuracy": robust / 100, "flags": flags(robust)}
        for attack in ("pgd-100", "autoattack")
    ]
    about = {"part": part, "method": method, "seed": seed, "label": label, "attacks": ["pgd-100"]}
    return {"model": photo_cells.MODELS[1], "shots": 16, "test": "photos", **about, **facts} | {
        "rows": rows
    }


def of_losses(objective, loss, ce, t, method="nap"):
    """A run where the first ``ce`` images withstand `apgd-ce`, and the last ``t`` `apgd-t`."""
    rows = [{"attack": "clean", "eps": 0.0, "accuracy": 0.5, "flags": flags(50)}]
    rows += [
        {
            "attack": attack,
            "eps": 1 / 255,
            "accuracy": of.count("1") / 100,
            "flags": of,
            "search_precision": "own",
        }
        for attack, of in (("apgd-ce", flags(ce)), ("apgd-t", flags(t)[::-1]))
    ]
    changes = [["objective", objective], ["attack_loss", loss]] if objective else []
    about = {"part": "losses", "model": photo_cells.MODELS[1], "changes": changes}
    return {**about, "method": method, "attacks": ["apgd-ce", "apgd-t"], "rows": rows}


def test_an_image_withstands_apgd_if_it_withstands_both_parts():
    rows = [of_losses("", "", 40, 70, "zero-shot")]  # 10 withstand both
    rows += [of_losses("ce", "ce", 40, 80), of_losses("trades", "kl", 60, 90)]
    lines = [line.strip("| ").split(" | ") for line in photos_page.losses_table(rows).splitlines()]
    assert lines[2][1:8] == ["zero-shot", "", "", "fp32", "50.0", "40.0", "10.0"]
    assert lines[3][2:8] == ["ce", "ce", "fp32", "50.0", "40.0", "20.0"]
    assert lines[3][8].startswith("+10.0 ± 5.")
    assert lines[4][2:8] == ["trades", "kl", "fp32", "50.0", "60.0", "50.0"]
    assert [cell[:5] for cell in lines[4][8:]] == ["+40.0", "+30.0"]


def test_every_compared_pair_is_a_cell_whose_settings_are_valid():
    for cell in photo_cells.losses_cells():
        if cell.method != "zero-shot":
            kind = TUNERS[cell.method]
            config = kind.Config(**{**kind.presets[cell.model], **dict(cell.changes)})
            assert config.attacked_loss == dict(cell.changes)["attack_loss"]
    assert len(list(photo_cells.losses_cells())) == 2 * (1 + 8 + 4 + 4)


def judged_by_autoattack(method, seed, apgd, standing):
    """A run whose images fell to the two parts of APGD, or after them; one less at 2/255."""
    rows = [
        {
            "attack": "autoattack",
            "eps": eps / 255,
            "accuracy": (standing + 1 - eps) / 100,
            "flags": flags(standing + 1 - eps),
            "parts": [
                {"attack": "apgd-ce", "flags": flags(50)},
                {"attack": "apgd-t", "flags": flags(apgd + 1 - eps)},
            ],
        }
        for eps in (1, 2)
    ]
    about = {"model": photo_cells.MODELS[1], "part": "strong", "test": "photos"}
    return about | {"method": method, "seed": seed, "attacks": ["autoattack"], "rows": rows}


def test_a_claim_compares_the_same_seeds():
    rows = [made_up("main", "nap", seed, "preset", 40, 20 + seed) for seed in range(3)]
    rows += [made_up("refiners", "nap", s, "text_refiners=False", 40, 10 + s) for s in range(3)]
    rows += [made_up("layers", "nap", s, "consistency=cosine", 40, 10 + s) for s in range(3)]
    first, second = (
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in photos_page.claims_table(rows).splitlines()[2:]
    )
    assert first[:4] == [
        "NAP: text token refiners",
        "3",
        "+0.0 ± 0.0",
        "within noise",
    ]
    assert first[4].startswith("+10.0 ± 5.")
    assert first[5] == "seen"
    # the preset has no consistency of the layers
    assert second[0] == "NAP: consistency of the layers"
    assert second[4].startswith("-10.0 ± 5.")
    assert second[5] == "not seen (lower)"
    (line,) = photos_page.claims_table([*rows[:3], rows[4]]).splitlines()[2:]
    assert "| 1 | +0.0 | not yet measured | +10.0 | not yet measured |" in line


def test_every_claim_changes_a_part_that_the_preset_has_or_lacks():
    changes = {(c.method, c.part, c.label): dict(c.changes) for c in EVERY.values()}
    for method, part, label, preset_has, words in photos_page.CLAIMS:
        clip = load_clip(photo_cells.MODELS[1])
        preset = as_dict(TUNERS[method](clip, ["cat", "dog"]).config)
        changed = changes[method, part, label]
        before = {key: preset[key] for key in changed}
        assert before != changed, words
        absent = {"refiners": False, "text_refiners": False, "consistency": "none", "lam": 0.0}
        assert preset_has != any(absent.get(key) == before[key] for key in before), words
        if part == "mixture":
            assert (preset["n_prompts"], preset["ctx_init"]) == (8, "a photo of a")


def test_rows_of_other_plans_are_left_out(tmp_path):
    row = made_up("main", "nap", 0, "preset", 40, 20)
    row |= {"test_classes": "all", "classes": "all", "eps": ["1/255"], "changes": []}
    (tmp_path / run.PHOTOS.name).write_text(json.dumps({"cells": [row]}))
    found = photos_page.blocks(tmp_path)
    assert found["photos-main"] == "Not yet measured."
    assert found["photos-missing"].startswith(f"0 of {len(EVERY)} runs are measured.")


def test_tables_have_the_numbers_of_the_rows():
    rows = [made_up("main", "nap", seed, "preset", 40 + seed, 20 + seed) for seed in range(3)]
    for row in rows:
        row |= {"config": {"eps": 2 / 255}, "parameters": 1234}
        row |= {"tuning_seconds": 90.0, "machine": {"processor": "A(R) B(R) Processor"}}
    rows[2] |= {"tuning_seconds": 60.0, "machine": {"processor": "C"}}
    strong = [judged_by_autoattack("nap", seed, 19, 18) for seed in range(2)]
    (line,) = photos_page.main_table([*rows, *strong]).splitlines()[2:]
    assert line == (
        "| tiny-photos-robust | NAP | 2/255 | 41.0 (40.0 to 42.0) | 21.0 (20.0 to 22.0) | "
        "19.0 (19.0 to 19.0) | 18.0 (18.0 to 18.0) | - | 18.0 (18.0 to 18.0) | "
        "17.0 (17.0 to 17.0) | 1.5 (A B), 1.0 (C) | 1,234 | 3 |"
    )
    for eps in (1, 2):
        for attack, n in (("apgd-ce", 40), ("apgd-t", 15)):
            row = {"attack": attack, "eps": eps / 255, "flags": flags(n)}
            strong[0]["rows"].append(row)
    strong[0]["attacks"] = ["apgd-ce", "apgd-t"]
    (line,) = photos_page.main_table([*rows, strong[0]]).splitlines()[2:]
    assert "| 15.0 | 18.0 | - | 15.0 | 17.0 | 1.5 (A B), 1.0 (C) |" in line
    coop = made_up("main", "coop", 0, "preset", 40, 20) | {"config": {"eps": 2 / 255}}
    assert "2/255" not in photos_page.main_table([coop]).splitlines()[2]
    rows = [made_up("new", "apt", 0, "preset", 40, 20, test_classes=h) for h in ("base", "new")]
    (line,) = photos_page.new_table(rows).splitlines()[2:]
    assert line.endswith("| APT | 40.0 | 40.0 | 40.0 | 20.0 | 20.0 | 20.0 |")
    rows = [made_up("new", "apt", 0, "preset", 40, 0, test_classes=h) for h in ("base", "new")]
    (line,) = photos_page.new_table(rows).splitlines()[2:]
    assert line.endswith("| 0.0 | 0.0 | 0.0 |")
    rows = [
        made_up("corrupted", "apt", 0, "preset", 10 * int(name[-1]), 0, test=name)
        for name in photo_cells.CORRUPTED
    ]
    (line,) = photos_page.corrupted_table(rows).splitlines()[2:]
    assert line.endswith("| APT | 20.0 | 20.0 | 20.0 | 20.0 | 20.0 |")
    assert photos_page.corrupted_table(rows[1:]) == ""
    rows = [made_up("shots", "nap", 0, "preset", 30, 10, shots=1)]
    (line,) = photos_page.shots_table(rows).splitlines()[2:]
    assert line.endswith("| NAP | 30.0 | 10.0 | - | - | - | - |")


def test_the_choice_is_told_as_differences_from_the_zero_shot_classifier():
    rows = [made_up("main", "zero-shot", 0, "preset", 30, 10)]
    rows += [made_up("main", "nap", seed, "preset", 40 + seed, 20 + seed) for seed in range(3)]
    rows += [judged_by_autoattack("zero-shot", 0, 10, 9), judged_by_autoattack("nap", 0, 18, 16)]
    rows += [made_up("new", m, 0, "preset", c, 5, test_classes="new") for m, c in CLEAN_NEW]
    (line,) = photos_page.choice_table(rows).splitlines()[2:]
    words = [cell.split(" ±")[0] for cell in line.strip("| ").split(" | ")]
    assert words[1:] == ["NAP", "3", "+11.0", "+11.0", "+8.0", "+7.0", "-18.0", "+0.0", "-"]
    one = made_up("corrupted", "nap", 0, "preset", 30, 0, test="photos-noise-1")
    every = [
        made_up("corrupted", "zero-shot", 0, "preset", 10 * int(name[-1]), 0, test=name)
        for name in photo_cells.CORRUPTED
    ]
    (line,) = photos_page.choice_table([*rows, one, *every]).splitlines()[2:]
    assert line.endswith("| - |"), "one corruption is compared with the mean of twelve"
