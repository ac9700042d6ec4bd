"""The benchmark of Ray workers: all results are equal, and the file has their times."""

import json
from pathlib import Path

import pytest

from benchmarks.common.timing import RungsDifferError
from benchmarks.workers import measure as module
from fastprompt.runners.base import Here


class Elsewhere(Here):
    """Another runner than that of one process, which needs no Ray."""

    def __init__(self, workers):
        self.workers = workers


@pytest.fixture
def little(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "Ray", Elsewhere)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: True)
    out = str(tmp_path / "workers.json")
    return {"model": "tiny-shapes", "images": 4, "attack": "pgd-1", "rounds": 1, "out": out}


def test_it_writes_seconds_and_speed_ups(little, capsys):
    module.measure(**little)
    found = json.loads(Path(little["out"]).read_text())
    assert [row["what"] for row in found["rows"]] == ["bank", "evaluation"]
    for row in found["rows"]:
        assert row["seconds"].keys() == {module.ALONE, "1 worker", "2 workers"}
        assert row["speedup"].keys() == {"1 worker", "2 workers"}
    assert "2 workers" in capsys.readouterr().out


def test_a_part_that_is_measured_alone_keeps_the_row_of_the_other(little):
    module.measure(**little)
    before = json.loads(Path(little["out"]).read_text())["rows"]
    module.measure(**{**little, "images": 2, "attack": "pgd-2"}, parts=("evaluation",))
    bank, evaluation = json.loads(Path(little["out"]).read_text())["rows"]
    assert bank == before[0]
    assert (evaluation["images"], evaluation["attack"]) == (2, "pgd-2")


def test_rows_of_other_numbers_of_workers_have_columns_of_their_own():
    def row(what, workers):
        seconds = {module.ALONE: {"median": 9.0, "rounds": 2}, workers: {"median": 3.0}}
        about = {"what": what, "attack": "pgd-1", "images": 8, "seconds": seconds}
        return {**about, "speedup": {workers: {"medians": 3.0}}}

    found = module.lines({"rows": [row("bank", "2 workers"), row("evaluation", "3 workers")]})
    assert found == [
        [
            "",
            "one process (s)",
            "2 workers (s)",
            "3 workers (s)",
            "2 workers, speed-up",
            "3 workers, speed-up",
            "rounds",
        ],
        ["bank, pgd-1, 8 images", "9.0", "3.0", "", "3.00x", "", "2"],
        ["evaluation, pgd-1, 8 images", "9.0", "", "3.0", "", "3.00x", "2"],
    ]


def test_other_results_are_not_timed(little, monkeypatch):
    count = []
    monkeypatch.setattr(module, "_bank", lambda *a: lambda runner: count.append(1) or len(count))
    with pytest.raises(RungsDifferError, match="bank: the result of 1 worker"):
        module.measure(**little)
