"""``fastprompt import CHECKPOINT``: published prompts into a run folder."""

import json

import pytest
import torch
from helpers.models import small_model

from fastprompt import APTTuner, CAPTTuner, load_data
from fastprompt.cli.main import main
from fastprompt.clip import bundled

WIDTH, IMAGE_WIDTH = 24, 32


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


@pytest.fixture
def coop(tmp_path):
    path = tmp_path / "model.pth.tar-50"
    torch.save({"state_dict": {"ctx": torch.randn(3, WIDTH)}, "epoch": 50}, path)
    return path


@pytest.fixture
def maple(tmp_path):
    state = {
        "prompt_learner.ctx": torch.randn(2, WIDTH),
        "prompt_learner.proj.weight": torch.randn(IMAGE_WIDTH, WIDTH),
        "prompt_learner.proj.bias": torch.randn(IMAGE_WIDTH),
    }
    path = tmp_path / "model.pth.tar-5"
    torch.save({"state_dict": state, "epoch": 5}, path)
    return path


def test_a_context_becomes_a_run_of_apt(coop, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["import", str(coop), "--data=patterns", f"--out={folder}"]) == 0
    assert f"apt on tiny-photos, 6 classes: run folder {folder}" in capsys.readouterr().out
    tuner = APTTuner.load(folder)
    assert tuner.classnames == load_data("patterns").classnames
    wanted = torch.load(coop, weights_only=True)["state_dict"]["ctx"]
    assert torch.equal(tuner.prompts.tokens, wanted)
    config = json.loads((folder / "config.json").read_text())
    assert config["imported"] == coop.name
    assert (config["data"]["name"], config["data"]["image_size"]) == ("patterns", 48)


def test_it_can_be_tuned_on(coop, tmp_path):
    folder, on = tmp_path / "run", tmp_path / "on"
    assert main(["import", str(coop), "--data=patterns", f"--out={folder}"]) == 0
    arguments = "--data=patterns --shots=1 --epochs=1 --steps=1 --attacks=clean --eval_limit=6"
    command = [
        "tune",
        "apt",
        *arguments.split(),
        "--sanity=off",
        "--n_ctx=3",
        "--warmup_epochs=1",
        "--warmup_lr=0",
    ]
    assert main([*command, f"--init_from={folder}", f"--out={on}"]) == 0
    assert torch.equal(APTTuner.load(on).prompts.tokens, APTTuner.load(folder).prompts.tokens)


def test_multi_modal_prompts_become_a_run_of_capt(maple, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("cat\nvery_small dog\n\n")
    folder = tmp_path / "run"
    command = ["import", str(maple), f"--classnames={names}", f"--out={folder}"]
    assert main(command) == 2
    assert "template must be given" in capsys.readouterr().err
    assert main([*command, "--template=[ctx] of a {}."]) == 0
    out = capsys.readouterr().out
    assert "layout of MaPLe or FAP with depth 1: 2 context tokens, depth 1" in out
    assert "template '[ctx] of a {}.', classes 'cat', 'very small dog'" in out
    tuner = CAPTTuner.load(folder)
    assert tuner.config.depth == 1
    assert tuner.classnames == ["cat", "very small dog"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "token_suffix"),
        (["--data=patterns", "--classnames=x"], "classnames: the file x"),
        (["--data=patterns", "--template=a photo"], "template"),
        (["--classnames=missing.txt"], "missing.txt"),
        (["--data=patterns", "--method=nap"], "nap"),
        (["--data=patterns", "--clip=ViT-B-33"], "ViT-B-33"),
    ],
)
def test_what_does_not_fit_is_one_line(coop, tmp_path, capsys, more, message):
    assert main(["import", str(coop), *more, f"--out={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "x.pth").write_text("hello")
    command = ["import", str(tmp_path / "x.pth"), "--data=patterns", f"--out={tmp_path / 'run'}"]
    assert main(command) == 2
    assert "x.pth" in capsys.readouterr().err


def test_the_missing_option_is_called_by_its_name(capsys):
    assert main(["import", "nothing.pth"]) == 2
    assert "--out" in capsys.readouterr().err
