"""``fastprompt tune METHOD --yacs``: the translation is printed, and other options override it."""

import json

import pytest
import torch
from helpers.models import small_model

from fastprompt.cli.main import main
from fastprompt.clip import bundled

FILE = """
DATASET: {NAME: DescribableTextures, ROOT: /none, NUM_SHOTS: 16}
OPTIM: {NAME: sgd, LR: 0.004, MAX_EPOCH: 50, LR_SCHEDULER: cosine, WARMUP_CONS_LR: 1e-5}
MODEL: {BACKBONE: {NAME: ViT-B/32}}
TRAINER: {ADV: {N_CTX: 2, CLASS_TOKEN_POSITION: middle}}
"""
OPTIONS = [
    *("--clip", "tiny-shapes", "--device", "cpu", "--data", "patterns", "--shots", 2),
    *("--epochs", 1, "--steps", 2, "--eval_limit", 20, "--sanity=off", "--attacks=clean"),
]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bundled, "names", lambda: ["tiny-shapes"])
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    torch.set_num_threads(1)
    (tmp_path / "config.yaml").write_text(FILE)

    def run(*arguments):
        code = main(["tune", "advpt", *(str(a) for a in arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_run_from_a_yacs_file(call, tmp_path):
    """The command line, then a settings file, then yacs, then the authors' settings hold."""
    settings, folder = tmp_path / "settings.yaml", tmp_path / "run"
    settings.write_text("batch: 5\nlr: 0.1\n")
    trainer = tmp_path / "trainer.yaml"
    trainer.write_text("OPTIM: {MOMENTUM: 0.5}\nDATALOADER: {TRAIN_X: {BATCH_SIZE: 32}}\n")
    files = ["--yacs", tmp_path / "config.yaml", "--yacs-trainer", trainer, "--config", settings]
    code, out, err = call(*files, *OPTIONS, "--out", folder)
    assert code == 0, err
    for line in (
        "  DATASET.NAME = 'DescribableTextures': overridden by --data",
        "  OPTIM.MAX_EPOCH = 50: epochs overridden by --epochs",
        "  OPTIM.LR = 0.004: lr overridden by --config",
        "  TRAINER.ADV.CLASS_TOKEN_POSITION = 'middle': template = [ctx] {} [ctx].",
        "  all other settings: the published settings of advpt",
    ):
        assert line in out.splitlines()
    config = json.loads((folder / "config.json").read_text())["config"]
    wanted = {"lr": 0.1, "batch": 5, "epochs": 1, "n_ctx": 2, "momentum": 0.5}
    wanted |= {"template": "[ctx] {} [ctx].", "start": "one-sided"}  # the last is published
    assert {k: config[k] for k in wanted} == wanted
    assert call("--resume", folder)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--yacs", "none.yaml"], ["yacs: file none.yaml does not exist"]),
        (["--yacs_trainer", "x.yaml"], ["--yacs is needed with --yacs_trainer"]),
        (["--yacs", "config.yaml"], ["DATASET.NAME = 'NoSet'", "pass --data"]),
        (["--yacs", "config.yaml", "--data=patterns"], ["OPTIM.NAME = 'adam'", "--optimizer"]),
        (["--resume", "run", "--yacs", "config.yaml"], ["remove --yacs"]),
    ],
)
def test_what_is_refused_is_one_line(call, monkeypatch, tmp_path, arguments, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("DATASET: {NAME: NoSet}\nOPTIM: {NAME: adam}\n")
    code, _, err = call(*arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert all(part in err for part in parts)


def test_seeds_replace_that_of_the_file(call, tmp_path):
    (tmp_path / "config.yaml").write_text("SEED: 7\nTRAINER: {ADV: {N_CTX: 2}}\n")
    out_folder = tmp_path / "runs"
    yacs = ["--yacs", tmp_path / "config.yaml", *OPTIONS, "--out", out_folder]
    code, out, err = call(*yacs, "--seeds", 3)
    assert code == 0, err
    assert "SEED = 7: seed overridden by --seeds, data_seed overridden by --seeds" in out
    stored = json.loads((out_folder / "seed-3" / "config.json").read_text())
    assert (stored["config"]["seed"], stored["data"]["seed"]) == (3, 3)
