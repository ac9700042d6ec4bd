"""``fastprompt export RUN``: files, the accuracy of int8, and refusals."""

import json
import re
import sys

import pytest
import torch
from helpers.models import small_model

from fastprompt import APTTuner, NAPTuner, load_clip, load_data
from fastprompt.cli.main import main
from fastprompt.clip import bundled


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a text-only and of a multi-modal method, with and without a data set."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        clip = load_clip("tiny-shapes")
        data = load_data("patterns", shots=1).for_model(clip)
        for tuner in (APTTuner(clip, data.classnames, n_ctx=2), NAPTuner(clip, data.classnames)):
            job = {"data": data.source}
            tuner.save(folder / tuner.method, job=job if tuner.method == "apt" else None)
    return folder


def test_a_torch_program_and_class_features(runs, tmp_path, capsys):
    for name in ("model.pt2", "classes.safetensors"):
        assert main(["export", str(runs / "apt"), f"--out={tmp_path / name}"]) == 0
        out = capsys.readouterr().out
        assert "apt on tiny-shapes, 6 classes" in out
        assert re.search(rf"{name}: \d+\.\d MB", out)
    program = torch.export.load(tmp_path / "model.pt2").module()
    classifier = APTTuner.load(runs / "apt").classifier_for(precision="fp32")
    pixels = torch.rand(3, 3, 48, 48)
    assert (program(pixels) - classifier(pixels)).abs().max() < 1e-4


def test_int8_prints_both_accuracies(runs, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert main(["export", str(runs / "apt"), f"--out={out}", "--int8", "--limit=30"]) == 0
    text = capsys.readouterr().out
    found = re.search(r"accuracy on 30 of [\d,]+ test images of patterns: (.*)", text)
    assert found is not None
    values = re.fullmatch(r"float32 ([\d.]+) %, int8 ([\d.]+) %", found[1])
    assert values is not None
    # what the library itself gets on the same images
    classifier = APTTuner.load(runs / "apt").classifier_for(precision="fp32")
    test = load_data("patterns").for_model(classifier.clip).test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    rows = order[:30].sort().values
    logits = classifier(test.images[rows].float() / 255)
    right = (logits.argmax(dim=1) == test.labels[rows]).float().mean()
    assert float(values[1]) == pytest.approx(100 * float(right), abs=0.1)
    assert out.is_file()


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("apt", [], "--out is required"),
        ("apt", ["--out=model.bin"], "must end in"),
        ("apt", ["--out=model.onnx", "--format=torch"], "must end in .pt2"),
        ("apt", ["--out=model.pt2", "--format=tflite"], "format"),
        ("apt", ["--out=model.pt2", "--int8"], "int8 must be False"),
        ("apt", ["--out=model.pt2", "--limit=0"], "limit"),
        ("nap", ["--out=classes.safetensors"], "format='onnx'"),
        ("missing", ["--out=model.pt2"], "is not a run folder"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run, arguments, message, runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(runs / run), *arguments]) == 2
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1]
    assert [line for line in err if line.startswith("error:")] == err[-1:]
    assert not list(tmp_path.iterdir())


def test_the_opset_and_what_is_missing(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "model.onnx"
    command = ["export", str(runs / "nap"), f"--out={out}"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    if pytest.importorskip("onnx") and pytest.importorskip("onnxscript"):
        assert main([*command, "--opset=11"]) == 2
        assert "opset must be at least 18" in capsys.readouterr().err
        assert main([*command, "--int8"]) == 2
        assert "pip install onnxruntime" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(command) == 2
    assert "fastprompt[export]" in capsys.readouterr().err
    assert not out.exists()


def test_int8_needs_test_images(runs, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert main(["export", str(runs / "nap"), f"--out={out}", "--int8"]) == 2
    assert "does not record its data set; pass --data" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_of_transformers_by_its_folder(tmp_path, capsys):
    pytest.importorskip("transformers")
    from helpers.transformers_clips import their_folder

    folder, run = their_folder(tmp_path / "model"), tmp_path / "run"
    context = tmp_path / "context.pth"
    torch.save({"state_dict": {"ctx": torch.randn(2, 24)}, "epoch": 5}, context)
    command = ["import", str(context), "--data=patterns", f"--out={run}"]
    assert main([*command, f"--clip=transformers:{folder}"]) == 0
    source = json.loads((run / "config.json").read_text())["clip"]["source"]
    assert source == {"model": str(folder), "source": "transformers"}
    assert main(["export", str(run), f"--out={tmp_path / 'classes.safetensors'}"]) == 0
