"""A run that was saved before settings were renamed is still that run."""

import shutil
from pathlib import Path

import pytest
import torch

from fastprompt import AMPTTuner, load_data
from fastprompt._utils.files import read_json, read_tensors
from fastprompt.cli.main import main
from fastprompt.evaluation import Evaluation
from fastprompt.report.runs import read_runs
from fastprompt.tuning.renamed import renamed, renamed_config, renamed_job

OLD = Path(__file__).parents[1] / "data" / "run-0.1.0"


@pytest.fixture
def old(tmp_path):
    """A copy of the committed run."""
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_the_committed_run_has_the_old_names():
    config = read_json(OLD / "config.json")
    assert config["config"]["optimiser"] == "adamw"
    assert config["config"]["mix"] == "normalised"
    assert config["job"]["data"] == "shapes-recoloured"
    assert read_json(OLD / "evaluations" / "1" / "job.json")["defences"] == "bits-4"


def test_a_run_is_loaded_and_judges_as_it_did(bundled_clip):
    tuner = AMPTTuner.load(OLD, bundled_clip)
    assert (tuner.config.optimizer, tuner.config.mix) == ("adamw", "normalized")
    assert (tuner.config.attacked_loss, tuner.config.objective) == ("ce", "ce")
    tensors, _ = read_tensors(OLD / "prompts.safetensors", "prompts")
    assert torch.equal(tuner.prompts.tokens, tensors["tokens"])
    stored = Evaluation.load(OLD / "result.json")
    test = load_data("shapes-recolored", classes="base").test
    rows = stored.data["indices"]
    images = torch.stack([test[i][0] for i in rows]).float() / 255
    with torch.no_grad():
        predictions = tuner.classifier(images).argmax(dim=1)
    assert predictions.tolist() == stored.row("tuned", "clean")["predictions"]


def test_a_run_is_judged_from_the_command_line(old, capsys):
    assert main(["evaluate", str(old), "--attacks", "clean", "--limit", "8", "--sanity=off"]) in (
        0,
        1,
    )
    before, after = (
        Evaluation.load(old / "evaluations" / number / "result.json") for number in ("1", "2")
    )
    for key in ("name", "fingerprint", "indices", "labels"):  # a report may compare the two
        assert before.data[key] == after.data[key]
    assert after.data["name"] == "shapes-recolored"
    for model in ("zero-shot", "tuned"):
        flags = [result.row(model, "clean")["flags"] for result in (before, after)]
        assert flags[0] == flags[1]


def test_its_results_and_settings_are_read_under_the_names_of_today(old):
    models = Evaluation.load(old / "evaluations" / "1" / "result.json").models
    assert [name for name, facts in models.items() if facts.get("defenses")] == [
        "zero-shot + bits-4",
        "tuned + bits-4",
    ]
    (run,) = read_runs([old])
    assert run.config["config"]["optimizer"] == "adamw"


def test_an_old_folder_is_not_written_into(old, bundled_clip, capsys):
    tuner = AMPTTuner.load(old, bundled_clip)
    with pytest.raises(FileExistsError, match="new folder"):
        tuner.save(old)
    before = (old / "config.json").read_bytes()
    assert main(["tune", "ampt", f"--resume={old}"]) == 2
    assert "new run" in capsys.readouterr().err
    assert (old / "config.json").read_bytes() == before


def test_only_names_that_changed_are_changed():
    given = {"optimiser": "sgd", "mix": "raw", "data": "shapes", "lr": 0.1, "classnames": ["a"]}
    assert renamed(given) == {
        "optimizer": "sgd",
        **{k: v for k, v in given.items() if k != "optimiser"},
    }
    assert renamed({"weigh": None, "lam": 1.0}) == {"lam": 1.0}
    assert renamed({"precision": None}) == {"precision": "auto"}
    assert renamed({"precision": "bf16"}) == {"precision": "bf16"}
    assert [renamed({"sanity": old}) for old in (True, False, "off")] == [
        *({"sanity": "full"}, {"sanity": "quick"}, {"sanity": "off"})
    ]
    assert renamed_config({"job": {"shots": 1}})["job"] == {
        **{"shots": 1, "sanity": "quick", "image_size": None},
        **{"classnames": None, "templates": None, "on_error": None},
        **{"search_precision": "own", "confirm": True},
    }
    assert "weigh" in renamed({"weigh": "mine.alpha"})  # refused by name, not dropped
    assert renamed_config({"config": {}, "classnames": ["optimiser"], "job": None}) == {
        "config": {},
        "classnames": ["optimiser"],
        "job": None,
    }


@pytest.mark.parametrize(("old", "today"), [(False, None), (True, "tensorboard")])
def test_a_job_with_the_old_switch_names_its_tracker(old, today):
    assert renamed_job({"track": old})["track"] == today
