"""Which extra a feature needs: each runs where only the plain install and that extra are there."""

import shutil

import pytest
import torch
from helpers.installs import PROJECT, ROOT, closure, hidden, run
from helpers.models import small_model
from PIL import Image

from fastprompt import APTTuner
from fastprompt.clip import bundled

BEGIN = """
import torch
from pathlib import Path
from helpers.models import small_model
import fastprompt
from fastprompt.cli.main import main
from fastprompt.clip import bundled
bundled.load = lambda name, **_: small_model()
torch.set_num_threads(1)
def done(*line, code=0):
    assert main([*line]) == code, line
def tracked(tracker):
    data = fastprompt.load_data("patterns", shots=1)
    tuner = fastprompt.APTTuner("tiny-shapes", data.classnames, n_ctx=2, epochs=1, steps=1)
    tuner.fit(data.train, data.val, out="tracked", callbacks=[tracker], progress=False)
    return tuner
"""
PLAIN = """
seen = []
class Seen(fastprompt.Callback):
    def on_epoch(self, tuner, row):
        seen.append(row)
tracked(Seen())
assert seen
done("evaluate", "tracked", "--calibrate", "--limit=4", "--sanity=off")
assert Path("tracked/calibration.json").is_file()
for kind in ("csv", "jsonl"):
    done("predict", "run", "photos", "photos.tar", "--out", f"found.{kind}")
    assert len(Path(f"found.{kind}").read_text().splitlines()) == 4 + (kind == "csv")
done("push", "run", "--out", "shared")
assert fastprompt.AutoTuner.from_pretrained("shared").method == "apt"
for kind in ("pt2", "safetensors"):
    done("export", "run", "--out", f"model.{kind}")
    assert Path(f"model.{kind}").stat().st_size
done("tune", "apt", "--print_config")
"""
# what a process prints whose install lacks the extra
WITHOUT = {
    "parquet": 'done("predict", "run", "photos", "--out", "found.parquet", code=2)',
    "export": 'done("export", "run", "--out", "model.onnx", code=2)',
    "completion": 'done("--print_completion", "bash", code=2)',
    "ray": 'done("evaluate", "run", "--ray", code=2)',
    "track": 'done("tune", "apt", "--data=patterns", "--track=tensorboard", code=2)',
    "datasets": 'done("tune", "apt", "--data=hf:saved", code=2)',
    "hf": 'done("tune", "apt", "--clip=transformers:org/name", code=2)',
}
WITH = {
    "parquet": """
done("predict", "run", "photos", "--out", "found.parquet")
import pyarrow.parquet
assert pyarrow.parquet.read_table("found.parquet").num_rows == 2
""",
    "export": """
done("export", "run", "--out", "model.onnx")
import onnx
onnx.checker.check_model("model.onnx")
""",
    "completion": 'done("--print_completion", "bash")',
    "track": """
tracked("tensorboard")
assert list(Path("tracked/tensorboard").iterdir())
""",
    "datasets": """
import datasets
images = datasets.load_dataset("imagefolder", data_dir="classes", split="train")
images.save_to_disk("saved")
assert len(fastprompt.load_data("hf:saved", image_size=48).classnames) == 2
""",
    "hf": """
from helpers.transformers_clips import their_folder
clip = fastprompt.load_clip(their_folder(Path("theirs")), source="transformers")
model, *_ = clip.zero_shot(["cat", "dog"]).to_transformers()
assert type(model).__name__ == "CLIPModel"
""",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run, pictures, a tar file of them, and classes of pictures."""
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    APTTuner("tiny-shapes", ["cat", "dog"], n_ctx=2).save(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    pixels = torch.randint(256, (2, 48, 48, 3), dtype=torch.uint8)
    for i, picture in enumerate(pixels.numpy()):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    shutil.make_archive(str(tmp_path / "photos"), "tar", tmp_path / "photos")
    for name in ("cat", "dog"):
        for i in range(4):
            file = tmp_path / "classes" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i % 2].numpy()).save(file)
    return tmp_path


def test_what_an_extra_brings_and_no_other():
    needed = closure(PROJECT["dependencies"])
    assert {"torch", "open-clip-torch", "huggingface-hub", "timm", "docstring-parser"} <= needed
    assert not needed & {"transformers", "tensorboard", "shtab", "pytest"}
    assert {"transformers", "tensorboard", "pytest"} <= {*hidden()}
    assert "transformers" not in hidden("hf")
    assert "tensorboard" in hidden("hf")


@pytest.mark.slow
def test_a_plain_install_does_all_that_needs_no_extra_and_names_those_that_are_lacking(place):
    told = "import contextlib, sys\nwith contextlib.redirect_stderr(sys.stdout):\n    "
    said = run(BEGIN + PLAIN + told + "\n    ".join(WITHOUT.values()), cwd=place)
    for extra in WITHOUT:
        assert f"fastprompt[{extra}]" in said, extra


@pytest.mark.slow
@pytest.mark.parametrize("extra", WITH)
def test_a_feature_runs_with_its_extra_alone(extra, place):
    run(BEGIN + WITH[extra], extra, cwd=place)


def test_every_extra_of_a_feature_is_tried_and_in_the_table():
    apart = {"test", "test-use", "peers", "bench", "docs", "dev"}
    assert {*WITHOUT} == {*WITH, "ray"} == {*PROJECT["optional-dependencies"]} - apart
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert all(f"| `{extra}` |" in page for extra in WITHOUT)
