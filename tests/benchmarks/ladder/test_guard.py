"""The guard names the rungs that lost more than a fifth of their ratio, and no others."""

import copy
from pathlib import Path

import pytest
from helpers.ladder_files import SECONDS, STEP, TEXT, entries, rows, save, slower

from benchmarks.common import paths
from benchmarks.ladder import guard


def losses(run, committed, **options):
    return list(guard.compare(run, committed, **options).losses)


def test_the_guard_names_a_loss_of_21_percent_and_none_of_19():
    (loss,) = losses(rows(slower(STEP, "fastprompt", 0.21)), rows())
    assert str(loss) == "step/nap/c100 fastprompt: 7.11x, was 9x"
    assert not losses(rows(slower(STEP, "fastprompt", 0.19)), rows())
    assert losses(rows(slower(STEP, "fastprompt", 0.19)), rows(), share=0.15)


def test_the_guard_never_names_a_baseline():
    found = losses(rows(slower(STEP, "eager", 0.9)), rows())
    assert not found  # all others gained
    lost = copy.deepcopy(SECONDS)
    lost[STEP]["eager"] = [s / 10 for s in lost[STEP]["eager"]]
    assert {loss.rung for loss in losses(rows(lost), rows())} == set(SECONDS[STEP]) - {"eager"}


def test_what_is_on_one_side_alone_is_no_loss():
    run = {g: dict(rungs) for g, rungs in SECONDS.items() if g != TEXT}
    del run[STEP]["eager-careful"]
    run["step/capt/c100"] = {"eager": [2.0], "fastprompt": [1.0]}
    found = guard.compare(rows(run), rows())
    assert not found.losses
    assert found.new == ["step/capt/c100"]
    assert found.missing == [f"{STEP} eager-careful", TEXT]
    said = guard.lines(found)
    assert said[0] == "rungs that lost more than 20 % of their ratio: none"
    assert f"committed, not in this run: {STEP} eager-careful, {TEXT}" in said


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"classes": 80}, "classes 80, was 100"),
        ({"threads": 4}, "threads 4, was 2"),
        ({"depth": 12}, "depth 12, was None"),
    ],
)
def test_other_sizes_and_threads_are_not_compared(changed, why):
    found = guard.compare(rows(slower(STEP, "fastprompt", 0.9), **changed), rows())
    assert not found.losses
    assert found.compared == 0
    assert f"{STEP} ({why})" in found.unlike


def test_another_torch_and_tuples_of_a_run_are_compared():
    run = rows(slower(STEP, "fastprompt", 0.5), torch="2.16.0", shape=(8, 100))
    assert [loss.rung for loss in losses(run, rows())] == ["fastprompt"]


def test_the_summary_of_a_run(tmp_path):
    path = tmp_path / "no-machine" / "ladder.json"
    (said,) = guard.summarize(rows(), path)
    assert said.startswith("nothing to compare with: ")
    assert str(path) in said
    path.parent.mkdir()
    path.write_bytes(b"")  # as pytest-benchmark leaves the file that it is going to write
    (said,) = guard.summarize(rows(), path)
    assert said.startswith(f"nothing to compare with: {path} is not readable JSON")
    assert guard.summarize([], path) == []
    path = save(tmp_path, {"benchmarks": entries()})
    assert guard.summarize(rows(slower(STEP, "fastprompt", 0.5)), path) == [
        "rungs that lost more than 20 % of their ratio: 1 of 9 compared",
        "  step/nap/c100 fastprompt: 4.5x, was 9x",
    ]


def test_the_guard_as_a_program(tmp_path, capsys):
    kept = save(tmp_path, {"benchmarks": entries()})
    run = save(tmp_path, {"benchmarks": entries(slower(TEXT, "fastprompt", 0.3))}, name="run.json")
    assert guard.main(run, kept) == 1
    assert f"  {TEXT} fastprompt: 11.2x, was 16x" in capsys.readouterr().out
    assert guard.main(kept, kept) == 0
    with pytest.raises(ValueError, match="share"):
        guard.main(run, kept, share=1.5)
    with pytest.raises(FileNotFoundError):
        guard.main(run, tmp_path / "no-machine" / "ladder.json")


def test_the_command_line():
    found = guard.arguments(["run.json", "--share", "0.1"])
    assert found["run"] == Path("run.json")
    assert found["share"] == 0.1
    assert found["against"] == paths.results() / "ladder.json"
