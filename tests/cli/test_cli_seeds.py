"""``fastprompt tune METHOD --seeds 1 2 3``: a run for each, mean and spread."""

import json
import shutil
import statistics

import pytest
import torch
from helpers import processes
from helpers.models import small_model

from fastprompt import APTTuner
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.evaluation import Evaluation
from fastprompt.evaluation.spread import spread, spread_table

COMMAND = "tune apt --device=cpu --data=patterns --shots=1 --epochs=1 --steps=1 --n_ctx=2"
COMMAND += " --eps=2/255 --attacks=clean,pgd-2 --eval_limit=12 --sanity=off"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


def call(*arguments):
    return main([*COMMAND.split(), *(str(a) for a in arguments)])


def rows_of(folder):
    return json.loads((folder / "result.json").read_text())["rows"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "runs"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        assert call("--seeds", 3, 1, 2, f"--out={folder}") == 0
    return folder


@pytest.fixture
def three(tuned, tmp_path):
    """Runs of three seeds, which a test may change."""
    return shutil.copytree(tuned, tmp_path / "runs")


def test_each_seed_has_a_run_of_its_own(three, tmp_path, capsys):
    assert sorted(p.name for p in three.iterdir()) == [
        *(".lock", "seed-1", "seed-2", "seed-3", "seeds.json", "summary.json"),
    ]
    for seed in (1, 2, 3):
        config = json.loads((three / f"seed-{seed}" / "config.json").read_text())
        assert config["config"]["seed"] == config["data"]["seed"] == seed
    # a run of the seed by itself gives the same bits
    assert call("--seed=2", "--data_seed=2", f"--out={tmp_path / 'alone'}") == 0
    alone, among = (APTTuner.load(p).prompts.tokens for p in (tmp_path / "alone", three / "seed-2"))
    assert torch.equal(alone, among)


def test_the_summary_is_mean_and_spread(three):
    summary = json.loads((three / "summary.json").read_text())
    assert summary["seeds"] == [3, 1, 2]
    each = [rows_of(three / f"seed-{seed}") for seed in (3, 1, 2)]
    for i, row in enumerate(summary["rows"]):
        values = [rows[i]["accuracy"] for rows in each]
        assert row["accuracies"] == values
        assert row["mean"] == pytest.approx(statistics.fmean(values))
        assert (row["low"], row["high"]) == (min(values), max(values))
        assert row["std"] == pytest.approx(statistics.stdev(values))
        assert (row["model"], row["attack"]) == (each[0][i]["model"], each[0][i]["attack"])


def test_the_table_ends_the_output(three, capsys):
    assert call("--seeds", 5, f"--out={three.parent / 'one'}") == 0
    out = capsys.readouterr().out
    assert "mean over 1 seed," in out
    assert "zero-shot" in out


def test_their_report_is_one_method(three):
    assert main(["report", str(three)]) == 0
    table = (three / "report.md").read_text("utf-8")
    assert "| apt (3 seeds) |" in table
    assert table.count("zero-shot") == 1
    summary = json.loads((three / "summary.json").read_text())["rows"]
    for row in (row for row in summary if row["model"] == "tuned"):
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in table


def test_resuming_runs_what_is_left(three, monkeypatch):
    before = {seed: rows_of(three / f"seed-{seed}") for seed in (1, 2, 3)}
    summary = (three / "summary.json").read_bytes()
    (three / "summary.json").unlink()
    (three / "seed-2" / "result.json").unlink()
    for file in (three / "seed-1").iterdir():
        file.unlink()
    (three / "seed-1").rmdir()
    begun, real = [], APTTuner.fit

    def fit(self, *arguments, **options):
        begun.append((self.config.seed, options["resume"]))
        return real(self, *arguments, **options)

    monkeypatch.setattr(APTTuner, "fit", fit)
    assert main(["tune", "apt", f"--resume={three}"]) == 0
    assert begun == [(1, False), (2, True)]
    accuracies = [[r["accuracy"] for r in rows_of(three / f"seed-{s}")] for s in (1, 2, 3)]
    assert accuracies == [[r["accuracy"] for r in before[s]] for s in (1, 2, 3)]
    assert (three / "summary.json").read_bytes() == summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", 1, 1], "[1, 1]"),
        (["--seeds", -1], "-1"),
        (["--seeds", 1, "--seed=2"], "drop --seed"),
        (["--seeds", 1, "--data_seed=2"], "drop --data_seed"),
        (["--seeds", "one"], "seeds"),
    ],
)
def test_bad_seeds_are_refused(arguments, message, tmp_path, capsys):
    assert call(*arguments, f"--out={tmp_path / 'runs'}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_in_use_is_refused(three, capsys):
    assert call("--seeds", 4, f"--out={three}") == 2
    assert "resume" in capsys.readouterr().err
    assert main(["tune", "ampt", f"--resume={three}"]) == 2
    assert "'apt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"job": {}}, "'clip'"),
        ({"job": []}, "job"),
        ({"seeds": [1, "x"]}, "seeds"),
        ({"a": 1}, " a;"),
    ],
)
def test_a_damaged_list_of_seeds_is_refused(three, change, named, capsys):
    file = three / "seeds.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert main(["tune", "apt", f"--resume={three}"]) == 2
    assert named in (err := capsys.readouterr().err)
    assert str(file) in err


def test_a_folder_of_seeds_in_use_is_refused(three, capsys):
    with processes.locking(three):
        assert main(["tune", "apt", f"--resume={three}"]) == 2
    assert "another process" in capsys.readouterr().err


def test_a_settings_file_is_read_once(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("batch: 4\nlr: 0.5\n")
    folder = tmp_path / "runs"
    assert call("--seeds", 1, f"--config={file}", "--lr=0.25", f"--out={folder}") == 0
    config = json.loads((folder / "seed-1" / "config.json").read_text())["config"]
    assert (config["batch"], config["lr"]) == (4, 0.25)
    assert json.loads((folder / "seeds.json").read_text())["settings"]["batch"] == 4


def row(accuracy, **more):
    facts = {"model": "m", "attack": "clean", "path": "none", "eps": 0.0, "trusted": True}
    return {**facts, "accuracy": accuracy, **more}


def test_spread_of_hand_made_evaluations():
    (one,) = spread([Evaluation([row(0.5)]), Evaluation([row(0.7, trusted=False)])])
    assert one["mean"] == pytest.approx(0.6)
    assert one["std"] == pytest.approx(0.1 * 2**0.5)
    assert not one["trusted"]
    assert " 60.0 % (50.0 to 70.0) !" in spread_table([one])
    assert spread([Evaluation([row(0.5)])])[0]["std"] == 0.0
    with pytest.raises(ValueError, match=r"^evaluations .*empty"):
        spread([])
    with pytest.raises(ValueError, match=r"^evaluations .*attacks"):
        spread([Evaluation([row(0.5)]), Evaluation([row(0.5, attack="pgd-20")])])


def test_an_interruption_says_how_all_seeds_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(APTTuner, "fit", interrupted)
    folder = tmp_path / "runs"
    assert call("--seeds", 1, 2, f"--out={folder}") == 130
    assert f"--resume {folder}\n" in capsys.readouterr().err
