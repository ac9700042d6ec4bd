"""Runs that differ only in their seeds are one method, with mean and spread."""

import json
import statistics

import numpy as np
import pytest
from helpers.made_up import RADII, N, evaluation, row, seed_run

from fastprompt.evaluation import Evaluation
from fastprompt.report import write_report
from fastprompt.report.classes import beyond_chance, class_tables
from fastprompt.report.comparison import Column, compare
from fastprompt.report.runs import read_runs
from fastprompt.report.seeds import group_runs, over_seeds
from fastprompt.report.tables import csv_text, latex_text, markdown_text

PGD = Column("pgd-20", "adaptive", RADII[0])


def methods_of(*folders):
    runs = read_runs(folders)
    groups = group_runs(runs)
    return over_seeds(compare(runs), groups), groups


def labels(*folders):
    return [m.label for m in methods_of(*folders)[0]]


@pytest.fixture
def three(tmp_path):
    """The folder of a run of three seeds."""
    folder = tmp_path / "many"
    for seed in (2, 0, 1):
        seed_run(folder / f"seed-{seed}", seed)
    (folder / "seeds.json").write_text(json.dumps({"seeds": [2, 0, 1]}))
    return folder


def accuracies(folder):
    results = (Evaluation.load(folder / f"seed-{seed}" / "result.json") for seed in (0, 1, 2))
    return [result.accuracy("tuned", "pgd-20", RADII[0]) for result in results]


def test_seeds_are_one_method_with_mean_and_spread(three):
    (zero_shot, nap), (group,) = methods_of(three)
    assert (zero_shot.label, nap.label, group.label) == ("zero-shot", *["nap (3 seeds)"] * 2)
    assert nap.names == group.names == ["seed 0", "seed 1", "seed 2"]
    values, found = accuracies(three), nap.cells[PGD].row
    assert found["accuracies"] == values
    assert found["accuracy"] == pytest.approx(statistics.fmean(values))
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert found["interval"] == [min(values), max(values)]
    together = nap.together(RADII[0])
    assert (together.share, together.std) == pytest.approx((found["accuracy"], found["std"]))


def test_the_same_runs_given_one_by_one_are_grouped_too(three):
    assert labels(*(three / f"seed-{s}" for s in (0, 1, 2))) == ["zero-shot", "nap (3 seeds)"]


def test_page_and_tables_state_mean_spread_and_each_seed(three):
    page = write_report(three)
    text = page.read_text("utf-8")
    values = [100 * value for value in accuracies(three)]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    assert "<h1>nap (3 seeds)</h1>" in text
    assert f"<b>{mean:.1f}</b>&#8239;±&#8239;{std:.1f}" in text
    seeds = text.split('<section id="seeds">')[1].split("</section>")[0]
    for value in values:
        assert f">{value:.1f}<" in seeds
    assert "Evaluations of seed 1" in text
    table = page.with_suffix(".md").read_text("utf-8")
    assert f"| nap (3 seeds) | 83.3 ± 0.0 | {mean:.1f} ± {std:.1f} |" in table
    assert "standard deviations over seeds" in table
    assert rf"{mean:.1f}\,{{\scriptsize$\pm$ {std:.1f}}}" in page.with_suffix(".tex").read_text()


def test_the_csv_has_the_values_of_each_seed(three):
    lines = [line.split(",") for line in csv_text(read_runs([three])).splitlines()]
    heads, rows = lines[0], [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert heads[:4] == ["run", "method", "seed", "data_seed"]
    own = {r["seed"]: float(r["accuracy"]) for r in rows if r["attack"] == "pgd-20"}
    assert own == dict(zip("012", accuracies(three), strict=True))


@pytest.mark.parametrize(
    "other",
    [{"method": "capt"}, {"lr": 0.5}, {"seed": 0}, {"job": False}, {"seed": None}],
    ids=str,
)
def test_what_differs_in_more_than_the_seed_stays_apart(tmp_path, other):
    one = seed_run(tmp_path / "one", 0)
    two = seed_run(tmp_path / "two", **{"seed": 1, **other})
    names = labels(one, two)
    same = other.get("method", "nap") == "nap"
    assert names[1:] == (["nap (one)", "nap (two)"] if same else ["nap", "capt"])


def test_other_training_data_or_evaluated_images_stay_apart(tmp_path):
    folders = [seed_run(tmp_path / name, seed) for seed, name in enumerate("abc")]
    config = json.loads((folders[1] / "config.json").read_text())
    config["job"]["shots"] = 16
    (folders[1] / "config.json").write_text(json.dumps(config))
    result = Evaluation.load(folders[2] / "result.json")
    result.data["indices"] = [i + 1 for i in result.data["indices"]]
    result.save(folders[2] / "result.json")
    tuned = [m for m in methods_of(*folders)[0] if m.model == "tuned"]
    assert [m.label for m in tuned] == ["nap (a)", "nap (b)", "nap (c)"]


def test_the_data_may_be_recorded_on_its_own(tmp_path):
    folders = [seed_run(tmp_path / name, seed) for seed, name in enumerate("abc")]
    for seed, folder in enumerate(folders):
        config = json.loads((folder / "config.json").read_text())
        shots = 16 if seed == 2 else 4
        data = {"name": "shapes", "shots": shots, "seed": seed, "directory": str(folder)}
        config |= {"job": {"track": False}, "data": data}
        (folder / "config.json").write_text(json.dumps(config))
    assert labels(*folders)[1:] == ["nap (2 seeds)", "nap (c)"]


def test_the_seed_of_the_training_draw_does_not_make_other_test_images(tmp_path):
    folders = [seed_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    for seed, folder in enumerate(folders):
        result = Evaluation.load(folder / "result.json")
        result.data["fingerprint"] = f"shapes/test/48px/v1/all/shots=None/seed={seed}"
        result.save(folder / "result.json")
    assert labels(*folders) == ["zero-shot", "nap (2 seeds)"]


def test_other_settings_of_an_attack_stay_apart(tmp_path):
    folders = [seed_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    result = Evaluation.load(folders[1] / "result.json")
    result.rows[-1]["settings"] = {"steps": 100}
    result.save(folders[1] / "result.json")
    assert labels(*folders)[1:] == ["nap (a)", "nap (b)"]


def test_searches_in_two_precisions_stay_apart(tmp_path):
    for seed in (0, 1):
        seed_run(tmp_path / str(seed), seed)
    path = tmp_path / "1" / "result.json"
    result = Evaluation.load(path)
    for precision, count in (("own", 1), ("bf16", 2)):  # earlier versions searched in their own
        result.rows[-1]["search_precision"] = precision
        result.save(path)
        found = labels(tmp_path / "0", tmp_path / "1")
        assert len([label for label in found if label != "zero-shot"]) == count


def test_unrecorded_training_data_is_stated(tmp_path):
    folders = [seed_run(tmp_path / name, seed, job=False) for seed, name in enumerate("ab")]
    text = write_report(folders, tmp_path / "out.html").read_text("utf-8")
    assert "nap (2 seeds) do not record the images they were tuned on" in text


def test_seeds_of_two_settings_are_told_apart_by_their_folders(tmp_path):
    folders = []
    for name, lr in (("slow", 0.1), ("fast", 0.5)):
        folders += [seed_run(tmp_path / name / f"seed-{s}", s, lr=lr) for s in (0, 1)]
    assert labels(*folders)[1:] == ["nap (2 seeds, slow)", "nap (2 seeds, fast)"]


def test_an_attack_that_not_all_seeds_have_says_how_many(tmp_path):
    folders = [seed_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    more = row("tuned", "square", "black-box", RADII[0], "10" * 60)
    again = evaluation([more])
    again.models["tuned"] = Evaluation.load(folders[0] / "result.json").models["tuned"]
    (folders[0] / "evaluations" / "1").mkdir(parents=True)
    again.save(folders[0] / "evaluations" / "1" / "result.json")
    (zero_shot, nap), _ = methods_of(*folders)
    assert [len(cell.each) for cell in nap.cells.values()] == [2, 2, 1]
    assert "| 50.0 (1 of 2) |" in markdown_text([zero_shot, nap])
    assert "(1 of 2)" in latex_text([nap])


def test_seeds_of_an_evaluation_are_one_method(tmp_path):
    run = seed_run(tmp_path / "run", 0)
    for how in (1, 2):
        place = run / "evaluations" / "1" / f"seed-{how}"
        seed_run(place, 0, how=how, flags="10" * 60)
        (place / "config.json").unlink()
        found = Evaluation.load(place / "result.json")
        found.data["indices"] = list(range(how, N + how))  # the seed draws the images
        for name in ("zero-shot", "tuned"):
            found.models[name] = Evaluation.load(run / "result.json").models[name]
        found.save(place / "result.json")
    (zero_shot, nap), _ = methods_of(run)
    assert (zero_shot.label, nap.label) == ("zero-shot (3 seeds)", "nap (3 seeds)")
    assert nap.names == [f"evaluation seed {i}" for i in range(3)]
    (alone,) = [m.label for m in methods_of(place.parent)[0] if m.model == "tuned"]
    assert alone == "nap (2 seeds)"  # an evaluation's folder: the method is in that of its run


def test_what_one_seed_failed_names_it(three):
    path = three / "seed-1" / "result.json"
    found = Evaluation.load(path)
    found.rows[-1] |= {"trusted": False, "reasons": ["no usable gradient"]}
    found.sanity[-1] |= {"verdict": "failed", "reason": "3 of 16 found"}
    found.save(path)
    nap = methods_of(three)[0][1]
    assert nap.cells[PGD].row["reasons"] == ["no usable gradient (seed 1)"]
    assert not nap.cells[PGD].row["trusted"]
    assert [s["reason"] for s in nap.failed] == ["3 of 16 found (seed 1)"]
    assert len(nap.sanity) == 5 + 1  # the check that another seed passed


def test_classes_of_seeds_are_compared_image_by_image(tmp_path):
    sets = ["1" * 60 + "0" * 60, "10" * 60]
    folders = [seed_run(tmp_path / str(s), s, flags=flags) for s, flags in enumerate(sets)]
    (table,) = class_tables(methods_of(*folders)[0], RADII[0])
    assert table.images == (5, 5)
    # of the images of class 13, the first seed has two, the second none
    assert (table.worst[0].name, table.worst[0].standing) == ("class no 13", 1.0)
    classes = [0, 1] * 40
    assert beyond_chance([0.5 * y + 0.5 for y in classes], classes)
    assert not beyond_chance([0.5] * 80, classes)
    assert not beyond_chance([i % 4 // 2 for i in range(80)], classes)
    assert not beyond_chance([1.0, 0.0], [0, 1])
    assert not beyond_chance([1.0, 0.0], [3, 3])


def test_chance_is_found_as_often_as_the_level_says():
    random, classes = np.random.default_rng(1), np.repeat(range(20), 5)
    found = sum(beyond_chance(random.random(100) < 0.5, classes) for _ in range(200))
    assert found <= 8  # 2 expected of 200 at 1 %; P(more than 8) < 1e-3
