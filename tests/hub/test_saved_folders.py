"""Tuned prompts saved to share: what is in the folder, what is not, and who takes it."""

import json
import pickle
import re
import shutil

import pytest
import torch
import yaml
from helpers.models import small_model

from fastprompt import AdvPTTuner, APTTuner, AutoTuner, CoOpTuner, Evaluation, load_clip, load_data
from fastprompt._utils.run_folder import RunFolder
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.hub.shared import shareable
from fastprompt.methods.registry import TUNERS

FAST = {"epochs": 1, "n_ctx": 2, "steps": 1, "eps": "8/255"}
FILES = ["README.md", "prompt_config.json", "prompts.safetensors"]


@pytest.fixture(scope="module")
def data():
    return load_data("patterns", shots=1)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run with its result, on a model that is loaded by the bundled one's name."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        tuner = APTTuner("tiny-shapes", data.classnames, **FAST)
        tuner.fit(data.train, out=folder, progress=False)
        tuner.evaluate(
            data.test,
            ["clean", "pgd-2"],
            limit=6,
            name="patterns",
            out=folder,
            resume=True,
            progress=False,
        )
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


def images(n=3):
    return torch.rand(n, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_a_folder_gives_the_same_classifier_and_every_command_takes_it(run, tmp_path, capsys):
    tuner = APTTuner.load(run)
    saved = tuner.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in saved.iterdir() if p.name != ".lock") == sorted(
        [*FILES, "result.json"]
    )
    again = AutoTuner.from_pretrained(saved)
    assert type(again) is APTTuner
    assert again.config == tuner.config
    assert torch.equal(again.classifier(images()), tuner.classifier(images()))
    # a folder that was loaded is saved again as it is
    twice = again.save_pretrained(tmp_path / "twice")
    for name in (*FILES, "result.json"):
        assert (twice / name).read_bytes() == (saved / name).read_bytes()
    onward = CoOpTuner("tiny-shapes", tuner.classnames, n_ctx=2, init_from=saved)
    assert torch.equal(onward.prompts.tokens, tuner.prompts.tokens)
    capsys.readouterr()
    command = ["evaluate", str(saved), "--attacks", "clean", "--limit", "6", "--sanity", "off"]
    assert main(command) == 0
    assert main(["report", str(saved)]) == 0
    assert (saved / "report.html").exists()


def test_the_card_says_what_the_result_says(run, tmp_path):
    saved = APTTuner.load(run).save_pretrained(tmp_path / "saved", repo="org/run")
    text = (saved / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "fastprompt",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "prompt-tuning", "adversarial-robustness", "apt"],
    }
    result = Evaluation.load(run / "result.json")
    assert result.table() in body
    assert json.dumps(result.row("tuned", "pgd-2", "4/255")["settings"]) in body
    assert ("**Trusted**" if result.trusted else "**Not to be trusted**") in body
    assert 'AutoTuner.from_pretrained("org/run")' in body
    for known in (
        "L-inf in pixel space",
        "https://arxiv.org/abs/2403.01849",
        RunFolder(run).read_config()["clip"]["fingerprint"],
        "patterns; shots=1, seed=0, classes=all",
        "@software{fastprompt",
        f'"torch": "{torch.__version__.partition("+")[0]}',
    ):
        assert known in body


def test_a_card_without_a_result_says_so_and_names_cannot_break_it(small_clip, tmp_path):
    names = ["a ``` b\n# c", "it`s {{ 7 * 7 }}", "d"]
    tuner = APTTuner(small_clip, [n.replace("\n", " ") for n in names], **FAST)
    text = (tuner.save_pretrained(tmp_path / "saved") / "README.md").read_text("utf-8")
    assert "saved without an evaluation" in text
    assert "{{ 7 * 7 }}" in text
    assert text.count("```") == 4
    assert not (tmp_path / "saved/result.json").exists()


def test_a_result_of_other_prompts_is_left_out(run, tmp_path, caplog):
    tuner = APTTuner.load(run)
    with torch.no_grad():
        tuner.prompts.tokens += 1
    saved = tuner.save_pretrained(tmp_path / "saved")
    assert "result: " in caplog.text
    assert not (saved / "result.json").exists()
    assert "saved without an evaluation" in (saved / "README.md").read_text("utf-8")
    given = tuner.save_pretrained(saved, result=Evaluation.load(run / "result.json"))
    assert (given / "result.json").exists()


def test_another_base_is_refused_with_what_differs(run, tmp_path):
    saved = APTTuner.load(run).save_pretrained(tmp_path / "saved")
    other = small_model()
    with torch.no_grad():
        other.visual.proj.mul_(2)
    with pytest.raises(ValueError, match=r"^clip: .*tiny-shapes.*\(other image encoder\)"):
        AutoTuner.from_pretrained(saved, other)
    with pytest.raises(ValueError, match=r"\(other image encoder, text encoder\)"):
        AutoTuner.from_pretrained(saved, small_model(seed=1))
    gray = load_clip(small_model(), mean=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"\(other normalization\)"):
        AutoTuner.from_pretrained(saved, gray)


@pytest.mark.parametrize("method", TUNERS)
def test_every_method(method, small_clip, tmp_path):
    own = {} if method == "coop" else {"steps": 1}
    tuner = TUNERS[method](small_clip, ["red", "green", "blue"], n_ctx=2, **own)
    with torch.no_grad():
        for value in tuner.prompts.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    saved = tuner.save_pretrained(tmp_path / "saved")
    again = AutoTuner.from_pretrained(saved, small_clip)
    assert type(again) is type(tuner)
    assert torch.equal(again.classifier(images()), tuner.classifier(images()))
    assert type(tuner).paper in (saved / "README.md").read_text("utf-8")


def test_a_model_object_must_be_passed(small_clip, tmp_path):
    saved = APTTuner(small_clip, ["red", "blue"], **FAST).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"^clip: .*pass the same model"):
        AutoTuner.from_pretrained(saved)


def test_no_path_of_this_machine_is_in_the_folder():
    here = "/home/someone/secret"
    config = {
        "method": "apt",
        "config": {"init_from": f"{here}/first", "eps": 0.1},
        "classnames": ["a", "b"],
        "clip": {
            "name": "ViT-B-32",
            "source": {"model": "ViT-B-32", "pretrained": f"{here}/weights.pt"},
            "fingerprint": "0",
        },
        "data": {"name": f"{here}/flowers", "root": here, "directory": here, "shots": 4},
        "job": {"image_weights": here},
        "key": "1",
        "threads": 2,
    }
    shared = shareable(config)
    assert "secret" not in json.dumps(shared)
    assert shared["data"] == {"name": None, "type": "flowers", "shots": 4}
    assert shared["config"]["init_from"] == "first"
    assert "job" not in shared
    for model, pretrained in (("ViT-B/32", "openai"), ("hf-hub:org/clip", None)):
        config["clip"]["source"] = {"model": model, "pretrained": pretrained}
        assert shareable(config)["clip"]["source"]["model"] == model
    for name, kept in {
        "shapes": True,
        "coop:Caltech101": True,
        "hf:org/set": True,
        f"hf:{here}/set": False,
        "hf:./set": False,
        "C:\\secret\\set": False,
        "train-{000..009}.tar": False,
    }.items():
        assert (shareable({**config, "data": {"name": name}})["data"]["name"] == name) is kept


def test_nothing_else_is_written_over(run, tmp_path, small_clip):
    tuner = APTTuner.load(run)
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    with pytest.raises(FileExistsError, match="another run"):
        tuner.save_pretrained(run)
    saved = tuner.save_pretrained(tmp_path / "saved")
    other = APTTuner("tiny-shapes", ["red", "blue"], **FAST)
    with pytest.raises(FileExistsError, match="another run"):
        other.save_pretrained(saved)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(FileExistsError, match="other files"):
        tuner.save_pretrained(tmp_path / "mine")
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


def test_damaged_and_foreign_folders(run, tmp_path):
    saved = APTTuner.load(run).save_pretrained(tmp_path / "saved")
    file = saved / "prompt_config.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "method": "unheard-of"}))
    with pytest.raises(ValueError, match="unknown method 'unheard-of'"):
        AutoTuner.load(saved)
    file.write_text(json.dumps({**whole, "classnames": whole["classnames"][::-1]}))
    with pytest.raises(ValueError, match=r"prompt_config\.json"):
        AutoTuner.load(saved)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"prompt_config\.json is not readable"):
        AutoTuner.load(saved)
    file.write_text(json.dumps(whole))
    (saved / "prompts.safetensors").write_bytes(pickle.dumps({"tokens": 1}))
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        AutoTuner.load(saved)
    with pytest.raises(RuntimeError, match=r"AutoTuner\.load"):
        AutoTuner()


def test_the_command_writes_a_folder(run, tmp_path, capsys):
    assert main(["push", str(run), "--out", str(tmp_path / "saved")]) == 0
    assert re.search(r"saved folder: .*saved", capsys.readouterr().out)
    assert AutoTuner.load(tmp_path / "saved").method == "apt"
    assert main(["push", str(run)]) == 2
    assert capsys.readouterr().err.startswith("error: repo: ")
    assert main(["push", str(run), "no-org"]) == 2
    assert "org/run" in capsys.readouterr().err


def test_the_card_says_what_was_attacked_while_tuning(data, tmp_path):
    def card_of(kind, **settings):
        tuner = kind("tiny-shapes", data.classnames, n_ctx=2, **settings)
        folder = tuner.save_pretrained(tmp_path / kind.method / str(len(settings)))
        return (folder / "README.md").read_text("utf-8")

    clean = card_of(CoOpTuner)
    assert "on clean images" in clean
    assert "Attack while tuning: none" in clean
    assert '"objective": "ce"' in card_of(APTTuner)
    trades = card_of(APTTuner, objective="trades")
    assert "to withstand adversarial images" in trades
    assert '"objective": "trades", "trades_beta": 6.0' in trades


def test_the_temperature_goes_with_the_prompts_and_the_bank_stays(data, tmp_path, run):
    shutil.copytree(run, tmp_path / "run")
    found = {"temperature": 2.5, "n": 6, "classnames": list(data.classnames)}
    RunFolder(tmp_path / "run").write_calibration(found)
    tuner = APTTuner.load(tmp_path / "run")
    saved = tuner.save_pretrained(tmp_path / "saved")
    assert RunFolder(saved).read_calibration() == found
    with torch.no_grad():
        tuner.prompts.tokens.mul_(2)
    assert RunFolder(tuner.save_pretrained(tmp_path / "saved")).read_calibration() is None
    advpt = AdvPTTuner("tiny-shapes", data.classnames, n_ctx=2, bank_dir=str(tmp_path / "banks"))
    content = (advpt.save_pretrained(tmp_path / "advpt") / "prompt_config.json").read_text("utf-8")
    assert str(tmp_path) not in content
    assert AutoTuner.from_pretrained(tmp_path / "advpt").config.bank_dir is None
