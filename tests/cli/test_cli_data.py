"""The data of a run: what it remembers, and folders with names, templates and broken pictures."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coop_trees import write_imagenet, write_split
from helpers.models import small_model
from PIL import Image

from fastprompt import APTTuner, load_clip, load_data
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.data import ImageTensors
from fastprompt.evaluation import Evaluation

TUNE = "tune apt --device=cpu --shots=1 --epochs=1 --steps=1 --n-ctx=2 --eps=2/255 --sanity=off"
TUNE += " --attacks=clean --eval-limit=6"
SMALL = "--attacks=clean --limit=6 --sanity=off"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    def load(name, image_size=None):
        if image_size is None:
            return small_model()
        return small_model(image_size=image_size)

    monkeypatch.setattr(bundled, "load", load)


@pytest.fixture
def call(capsys):
    """Runs a command that must succeed, or with ``fails`` be refused; returns what it printed."""

    def run(*arguments, fails=False):
        words = [word for text in arguments for word in str(text).split()]
        code = main(words)
        out, err = capsys.readouterr()
        assert code == (2 if fails else 0), err
        return err if fails else out

    return run


@pytest.fixture
def pictures(tmp_path):
    """A folder of four classes with ten pictures each."""
    noise = np.random.default_rng(0)
    for name in ("n1", "n2", "n3", "n4"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def tuned_in_python(data, out):
    tuner = APTTuner("tiny-shapes", data.classnames, n_ctx=2, epochs=1, steps=1)
    return tuner.fit(data.train, data.val, out, progress=False)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def result_of(folder):
    return Evaluation.load(folder / "result.json")


def test_a_run_of_python_remembers_its_data(call, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"seed": 3, "templates": "a {}.", "classnames": ["ant", "bee", "cow", "dog"]}
    data = load_data("pictures", shots=1, classes="base", image_size=48, **options)
    tuned_in_python(data, tmp_path / "run")
    assert config_of(tmp_path / "run")["data"] == {**data.arguments, "directory": str(tmp_path)}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = call("evaluate ../run --out=e", SMALL)
    assert "4 test images of" in out
    assert "(2 base classes)" in out
    found = result_of(tmp_path / "elsewhere" / "e").data
    assert (found["classnames"], found["classes"]) == (["ant", "bee"], "base")
    assert found["fingerprint"] == data.test.fingerprint


def test_a_run_on_own_tensors_asks_for_data(call, pictures, tmp_path):
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    train = ImageTensors(images, torch.arange(4) % 2)
    APTTuner("tiny-shapes", ["a", "b"], n_ctx=2, epochs=1, steps=1).fit(
        train, out=tmp_path / "run", progress=False
    )
    assert config_of(tmp_path / "run")["data"] == {"name": None, "type": "ImageTensors"}
    err = call("evaluate", tmp_path / "run", SMALL, fails=True)
    assert "data set of your own (ImageTensors)" in err
    assert "--data" in err
    call("evaluate", tmp_path / "run", SMALL, f"--data={pictures}")


def test_the_guide_of_capt_has_the_template_of_the_data_set(call, tmp_path):
    write_split(tmp_path / "data", "DTD")
    tune = f"{TUNE.replace('apt', 'capt')} --data=coop:DTD --root {tmp_path / 'data'}"
    for name, more, template in (
        ("own", "", "{} texture."),
        ("given", "--guide-template=a_{}.", "a_{}."),
        ("several", f"--templates {tmp_path / 'two.txt'}", "a photo of a {}."),
    ):
        (tmp_path / "two.txt").write_text("{} texture.\na {}.\n")
        run = tmp_path / name
        call(f"{tune} {more} --out {run}")
        config = (run / "config.json").read_text()
        assert json.loads(config)["config"]["guide_template"] == template
        call(f"tune capt --resume {run}")
        assert (run / "config.json").read_text() == config


def test_a_run_of_python_is_resumed_in_python(call, pictures, tmp_path):
    tuned_in_python(load_data(pictures, shots=1), tmp_path / "run")
    err = call("tune apt --resume", tmp_path / "run", fails=True)
    assert "fit(..., resume=True)" in err


def test_other_data_is_judged_on_all_of_its_classes(call, pictures, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for name in ("x", "y", "z"):
        shutil.copytree(pictures / "n1", other / name)
    call(TUNE, f"--data={pictures} --classes=base --out={run}")
    for number, (options, classes, names) in enumerate(
        (
            ("", "2 base classes", ["n1", "n2"]),
            ("--classes=new", "2 new classes", ["n3", "n4"]),
            (f"--data={other}", "(3 classes)", ["x", "y", "z"]),
        )
    ):
        out = tmp_path / str(number)
        assert classes in call("evaluate", run, SMALL, options, f"--out={out}")
        assert result_of(out).data["classnames"] == names


def test_a_folder_with_names_templates_and_a_broken_picture(call, pictures, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("n4 dog\nn3 cow\nn2 bee\nn1 ant\n")
    (tmp_path / "templates.txt").write_text("a {}.\nthe {}.\n")
    command = f"{TUNE} --data={pictures} --classnames={tmp_path / 'names.txt'}"
    command += f" --templates={tmp_path / 'templates.txt'} --out={tmp_path / 'run'}"
    test = load_data(pictures).test
    test.data.files[0].write_bytes(b"no picture")
    err = call(command, fails=True)
    assert str(test.data.files[0]) in err
    assert not (tmp_path / "run").exists()
    assert "1 unreadable left out" in call(command, "--on-error=skip")
    config = config_of(tmp_path / "run")
    assert config["classnames"] == ["ant", "bee", "cow", "dog"]
    assert config["data"]["classnames"]["n3"] == "cow"
    assert config["data"]["templates"] == ["a {}.", "the {}."]
    assert config["data"]["unreadable"] == {"train": 0, "val": 0, "test": 1}
    own = result_of(tmp_path / "run")
    assert (own.data["unreadable"], own.data["of"]) == (1, 7)
    (tmp_path / "names.txt").unlink()  # the run holds the names themselves
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "progress.jsonl").unlink()
    call("tune apt --resume", tmp_path / "run")
    call("evaluate", tmp_path / "run", SMALL, "--out", tmp_path / "e")
    for again in (result_of(tmp_path / "run"), result_of(tmp_path / "e")):
        assert again.data == own.data
        assert again.models["zero-shot"]["weights"] == own.models["zero-shot"]["weights"]


@pytest.mark.parametrize("command", [f"{TUNE} --out=run", f"evaluate {SMALL} --out=run"])
def test_what_the_data_refuses_is_told_before_the_model_is_loaded(
    call, pictures, tmp_path, monkeypatch, command
):
    monkeypatch.setattr("fastprompt.cli.parser.load_clip", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    (pictures / "n1").rename(tmp_path / "one" / "n1")
    (tmp_path / "names.json").write_text('{"n2": "bee"}')
    assert "only the class 'n1'" in call(command, "--data=./one", fails=True)
    err = call(command, "--data=./pictures --classnames=names.json", fails=True)
    assert "2 have no name: 'n3', 'n4'" in err
    assert "one '{}'" in call(command, "--data=patterns --templates=photo", fails=True)
    assert not (tmp_path / "run").exists()


def test_another_image_size(call, pictures, tmp_path):
    call(TUNE, f"--data={pictures} --image-size=64 --out={tmp_path / 'run'}")
    config = config_of(tmp_path / "run")
    assert config["clip"]["source"]["image_size"] == config["data"]["image_size"] == 64
    assert APTTuner.load(tmp_path / "run").clip.image_size == 64
    call("tune apt --resume", tmp_path / "run")
    err = call("evaluate", tmp_path / "run", SMALL, "--image-size=48", fails=True)
    assert err.startswith("error: image_size must be that of the run's model, 64, got 48")


def test_a_run_refuses_another_model(call, tmp_path):
    APTTuner("tiny-shapes", ["ant", "bee"], n_ctx=2).save(tmp_path / "run")
    for option in ("--clip=ViT-B-32", "--pretrained=openai", "--image_weights=x"):
        err = call("evaluate", tmp_path / "run", SMALL, option, fails=True)
        assert f"omit {option.split('=')[0]}" in err
        assert "own model, tiny-shapes" in err


def test_an_imported_run_remembers_its_data(call, pictures, tmp_path):
    torch.save({"state_dict": {"ctx": torch.randn(3, 24)}, "epoch": 50}, tmp_path / "model.pth")
    command = f"import {tmp_path / 'model.pth'} --data={pictures} --classes=new"
    call(command, "--out", tmp_path / "run")
    assert "(2 new classes)" in call("evaluate", tmp_path / "run", SMALL)


def test_a_run_of_an_earlier_version_is_read(call, pictures, tmp_path):
    """Its job held the options of the data."""
    run = tmp_path / "run"
    call(TUNE, f"--data={pictures} --classes=base --data_seed=2 --out={run}")
    config = config_of(run)
    assert config.pop("data")["seed"] == 2
    options = {"data": str(pictures), "shots": 1, "classes": "base", "data_seed": 2}
    new = ("image_size", "classnames", "templates", "on_error", "search_precision", "confirm")
    config["job"] = {k: v for k, v in config["job"].items() if k not in new}
    config["job"] |= {**options, "root": "data"}
    (run / "config.json").write_text(json.dumps(config))
    assert "2 base classes" in call("evaluate", run, SMALL, "--out", tmp_path / "e")
    call("tune apt --resume", run)
    own = result_of(run).data
    assert result_of(tmp_path / "e").data["fingerprint"] == own["fingerprint"]


def test_class_names_that_differ_are_shown():
    clip = load_clip("tiny-shapes")
    tuner = APTTuner(clip, ["ant", "bee", "cow"], n_ctx=2, epochs=1, steps=1)
    images = torch.zeros(3, 3, 48, 48, dtype=torch.uint8)
    for names, message in (
        (["ant", "dog", "cow"], "class 1 is 'dog' instead of 'bee'"),
        (["ant", "bee"], "2 instead of 3, and the first that it lacks is 'cow'"),
    ):
        other = ImageTensors(images, torch.zeros(3, dtype=torch.int64), classnames=names)
        with pytest.raises(ValueError, match=f"^train has other classes.*{message}"):
            tuner.fit(other)
        with pytest.raises(ValueError, match=f"^test has other classes.*{message}"):
            tuner.evaluate(other)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"^classnames must have at least two .*'ant'"):
        APTTuner("tiny-shapes", ["ant"])


def test_the_version(call):
    import fastprompt

    assert call("--version") == f"fastprompt {fastprompt.__version__}\n"


def test_an_unknown_option_with_dashes_is_told(call):
    assert "--eval-limits: did you mean '--eval_limit'" in call(
        "tune apt --eval-limits=3", fails=True
    )


# ---- data sets of CoOp -------------------------------------------------------------------------

CUT = Path(__file__).parents[1] / "data" / "coop"


def test_a_set_of_coop_is_tuned_on_and_evaluated_again(call, tmp_path, monkeypatch):
    shutil.copytree(CUT, tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    out = call(f"{TUNE} --data coop:Caltech101 --root sets --data-seed 1 --out run")
    assert "40 classes, 40 training images (drawn as by CoOp, seed 1)" in out
    assert "6 of 160 test images of coop:Caltech101 (40 classes; CoOp's splits), drawn" in out
    data = load_data("coop:Caltech101", root="sets", shots=1, seed=1, image_size=48)
    images = json.loads((tmp_path / "run" / "images.json").read_text())
    assert images == {"train": data.train.files, "val": data.val.files}
    assert images["train"][0].startswith("Faces/image_")
    recorded = config_of(tmp_path / "run")["data"]
    assert recorded["few_shots"] == "drawn as by CoOp, seed 1"
    assert result_of(tmp_path / "run").data["splits"] == "CoOp's splits"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = call(f"evaluate ../run {SMALL}")
    assert "6 of 160 test images of coop:Caltech101" in out
    assert "error: unknown data set of CoOp" in call(
        f"evaluate ../run {SMALL} --data coop:Caltech", fails=True
    )


def test_test_images_of_imagenet_select_no_prompts(call, tmp_path):
    write_imagenet(tmp_path)
    out = call(
        f"{TUNE} --data coop:ImageNet --root {tmp_path} --keep best --out {tmp_path / 'run'}"
    )
    assert "no validation: the validation images of coop:ImageNet are its test images" in out
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert "val" not in json.loads((tmp_path / "run" / "images.json").read_text())


def test_few_shots_of_a_folder_are_listed_too(call, pictures, tmp_path):
    call(f"{TUNE} --data {pictures} --out {tmp_path / 'run'}")
    images = json.loads((tmp_path / "run" / "images.json").read_text())
    assert [len(images[part]) for part in ("train", "val")] == [4, 4]
    assert all((pictures / name).is_file() for names in images.values() for name in names)


def test_a_result_says_that_splits_are_not_those_of_coop(call, tmp_path):
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i}.png")
    out = call(f"evaluate --data EuroSAT --root {tmp_path} --out {tmp_path / 'e'} {SMALL}")
    assert "(2 classes; torchvision's splits, not CoOp's (coop:EuroSAT))" in out
    page = tmp_path / "page.html"
    call(f"report {tmp_path / 'e'} --out {page}")
    assert "torchvision&#39;s splits, not CoOp&#39;s" in page.read_text()


def test_data_check_lists_what_is_there_and_what_is_missing(capsys, tmp_path):
    shutil.copytree(CUT, tmp_path / "sets")
    write_split(tmp_path / "sets", "DTD")
    few = tmp_path / "sets" / "dtd" / "split_fewshot"
    few.mkdir()
    (few / "shot_1-seed_1.pkl").write_bytes(b"")
    assert main(["data", "check", str(tmp_path / "sets")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["coop:Caltech101"] == "160 train / 80 val / 160 test images, 40 classes"
    assert lines["coop:DTD"] == "18 train / 15 val / 6 test images, 3 classes, 1 few-shot files"
    assert lines["coop:FGVCAircraft"].startswith("absent: needs fgvc_aircraft/variants.txt, ")
    assert lines["2"].startswith("of 15 data sets are complete, 0 are not")
    (tmp_path / "sets" / "dtd" / "images" / "banded" / "test_0.jpg").unlink()
    (tmp_path / "sets" / "oxford_pets").mkdir()
    assert main(["data", "check", str(tmp_path / "sets")]) == 1
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["coop:DTD"].startswith("unusable: 1 of the 39 pictures")
    wanted = "incomplete: needs oxford_pets/split_zhou_OxfordPets.json, oxford_pets/images/"
    assert lines["coop:OxfordPets"] == wanted
    assert lines["1"].startswith("of 15 data sets are complete, 2 are not")


# ---- manifests ---------------------------------------------------------------------------------


def test_a_manifest_is_tuned_on_and_evaluated_from_another_directory(
    call, pictures, tmp_path, monkeypatch
):
    files = sorted(pictures.glob("*/*"))
    rows = [f"{file.relative_to(pictures)},{file.parent.name}" for file in files]
    (tmp_path / "list.csv").write_text("\n".join(["path,classname", *rows]))
    monkeypatch.chdir(tmp_path)
    call(TUNE, f"--data=list.csv --root={os.path.relpath(pictures)} --out=run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call("evaluate ../run --out=e", SMALL)
    folder = load_data(pictures, image_size=48)
    assert result_of(tmp_path / "elsewhere" / "e").data["fingerprint"] == folder.test.fingerprint
    (tmp_path / "list.csv").write_text("path,classname\n\na.png\n")
    assert "line 3" in call("evaluate ../run --out=f", SMALL, fails=True)
