"""``fastprompt predict``: its files, how a stopped command goes on, and what it refuses."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture_sources, processes
from helpers.fake_ray import installed
from helpers.kills import torture
from helpers.models import small_model

from fastprompt import APTTuner, load_clip, predict
from fastprompt.cli import predict as command
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.inference.job import Job

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        APTTuner(load_clip("tiny-shapes"), NAMES, n_ctx=2).save(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures and one that cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    picture_sources.write(root, {"": 2})
    (root / "bee" / "1a.png").write_text("no picture")
    return root


def run(*arguments):
    return main(["predict", *(str(argument) for argument in arguments)])


def rows_of(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_the_file_has_the_predictions_of_the_run(tuned, pictures, tmp_path, kind, capsys):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    out, embeddings = tmp_path / f"new/predictions{kind}", tmp_path / "new/emb.npz"
    more = ["--top=2", "--batch=3", f"--embeddings={embeddings}"]
    assert run(tuned, pictures, f"--out={out}", *more) == 0
    said = capsys.readouterr()
    assert f"predictions of 6 pictures: {out}" in said.out
    assert "1a.png" in said.err
    assert "1 of the pictures could not be read" in said.err
    classifier = APTTuner.load(tuned).classifier
    wanted = predict(classifier, pictures, embeddings=True)
    shares, labels = wanted.probabilities.topk(2)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == wanted.paths
    for row, own, chances in zip(rows, labels.tolist(), shares.tolist(), strict=True):
        assert [int(row["label"]), int(row["label_2"])] == own
        assert [row["name"], row["name_2"]] == [NAMES[label] for label in own]
        found = [float(row["probability"]), float(row["probability_2"])]
        assert np.allclose(found, chances, rtol=1e-5)
    with np.load(embeddings) as file:
        assert file["paths"].tolist() == wanted.paths
        assert file["embeddings"].dtype == np.float32
        assert np.allclose(file["embeddings"], wanted.embeddings, rtol=1e-4, atol=1e-6)
    record = json.loads(Path(f"{out}.json").read_text())
    assert record["read"] == 6
    assert list(record["unread"]) == [str(pictures / "bee" / "1a.png")]
    left = {path.name for path in out.parent.iterdir()}
    assert left == {out.name, f"{out.name}.json", "emb.npz", f".{out.name}.lock"}


def test_without_a_file_a_line_per_picture_is_printed(tuned, pictures, capsys):
    assert run(tuned, pictures, "--top=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    for line in lines:
        path, _, found = line.rpartition(": ")
        assert Path(path).is_file()
        assert found.endswith(" %")
        assert found.split()[0] in NAMES


def test_other_classes_encode_the_prompts_again(tuned, pictures, tmp_path):
    names, out = tmp_path / "names.txt", tmp_path / "a.jsonl"
    names.write_text("red_kite\n\nblue moon\ncat\nsea\n")
    assert run(tuned, pictures, f"--classes={names}", f"--out={out}", "--top=9") == 0
    classifier = APTTuner.load(tuned).classifier_for(["red kite", "blue moon", "cat", "sea"])
    wanted = predict(classifier, pictures)
    assert [row["name"] for row in rows_of(out)] == wanted.names
    assert {"name_4"} <= rows_of(out)[0].keys()


def test_a_complete_file_is_left_as_it_is(tuned, pictures, tmp_path, monkeypatch):
    out = tmp_path / "a.csv"
    assert run(tuned, pictures, f"--out={out}") == 0
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(Job, "_predict", lambda *a: pytest.fail("predicted again"))
    assert run(tuned, pictures, f"--out={out}") == 0
    assert out.stat().st_mtime_ns == before


def test_a_stopped_command_goes_on(tuned, pictures, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole" / "a.csv", tmp_path / "a.csv"
    assert run(tuned, pictures, "--batch=2", f"--out={whole}") == 0
    real, stored = Job._store, []

    def store(self, start, part):
        if len(stored) == 2:
            raise KeyboardInterrupt
        stored.append(start)
        real(self, start, part)

    monkeypatch.setattr(Job, "_store", store)
    assert run(tuned, pictures, "--batch=2", f"--out={out}") == 130
    assert "run the same command again" in capsys.readouterr().err
    assert not out.exists()
    assert run(tuned, pictures, "--batch=3", f"--out={out}") == 2
    assert "batch was 2, now it is 3" in capsys.readouterr().err
    again = []
    monkeypatch.setattr(
        Job, "_store", lambda self, start, part: (again.append(start), real(self, start, part))
    )
    assert run(tuned, pictures, "--batch=2", f"--out={out}") == 0
    assert (stored, again) == ([0, 2], [4, 6])
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--top=1"], "top was 3, now it is 1"),
        (["--temperature=2"], "temperature was 1.0, now it is 2.0"),
        (["--classes=NAMES"], "class 0 is 'dog' instead of 'ant'"),
        (["MORE"], "there were 7 pictures, now there are 8"),
        (["--embeddings=emb.npz"], "embeddings was None"),
    ],
)
def test_a_file_of_other_settings_is_not_replaced(
    tuned, pictures, tmp_path, change, words, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("dog\ncat\n")
    (tmp_path / "more.png").write_bytes((pictures / "ant" / "0.png").read_bytes())
    assert run(tuned, pictures, "--out=a.csv") == 0
    before = Path("a.csv").read_bytes()
    capsys.readouterr()
    swap = {"--classes=NAMES": "--classes=names.txt", "MORE": "more.png"}
    assert run(tuned, pictures, *(swap.get(one, one) for one in change), "--out=a.csv") == 2
    assert words in capsys.readouterr().err
    assert Path("a.csv").read_bytes() == before


def test_other_files_are_not_replaced(tuned, pictures, tmp_path, capsys):
    out = tmp_path / "a.csv"
    out.write_text("mine")
    assert run(tuned, pictures, f"--out={out}") == 2
    assert "out:" in (err := capsys.readouterr().err)
    assert "exists" in err
    assert out.read_text() == "mine"


def test_the_exit_code_is_one_if_nothing_can_be_read(tuned, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no picture")
    assert run(tuned, tmp_path / "a.png") == 1
    assert run(tuned, tmp_path / "a.png", f"--out={tmp_path / 'a.csv'}") == 1
    assert (tmp_path / "a.csv").read_text().startswith("path,label,name,probability,label_2")


def test_parquet_without_pyarrow_names_the_extra(tuned, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(tuned, pictures, f"--out={tmp_path / 'a.parquet'}") == 2
    assert "fastprompt[parquet]" in capsys.readouterr().err


def test_a_temperature_divides_the_logits(tuned, pictures, tmp_path):
    for value in ("1", "4"):
        out = tmp_path / f"{value}.jsonl"
        assert run(tuned, pictures, f"--temperature={value}", f"--out={out}") == 0
    wanted = predict(APTTuner.load(tuned).classifier, pictures, temperature=4.0)
    found = [row["probability"] for row in rows_of(tmp_path / "4.jsonl")]
    assert np.allclose(found, wanted.probabilities.max(-1).values, rtol=1e-5)
    assert found != [row["probability"] for row in rows_of(tmp_path / "1.jsonl")]


def test_a_calibrated_run_is_used_with_its_temperature(tmp_path, pictures, capsys):
    words = "tune apt --device=cpu --data=patterns --shots=1 --epochs=1 --steps=1 --n_ctx=2"
    folder, names = tmp_path / "run", tmp_path / "names.txt"
    more = ["--attacks=clean", "--eval_limit=4", "--sanity=off"]
    assert main([*words.split(), *more, f"--out={folder}"]) == 0
    few = ["--attacks=pgd-1", "--eps=2/255", "--limit=6", "--sanity=off"]
    assert main(["evaluate", "--calibrate", str(folder), *few]) in (0, 1)
    assert "tuned: temperature" in capsys.readouterr().out
    kept = json.loads((folder / "calibration.json").read_text())
    assert kept["classnames"] == APTTuner.load(folder).classnames
    assert {row["attack"] for row in kept["rows"]} == {"clean", "pgd-10"}
    out = tmp_path / "a.jsonl"
    assert run(folder, pictures, f"--out={out}") == 0
    assert f"calibrated: temperature {kept['temperature']:.4g}" in capsys.readouterr().err
    classifier = APTTuner.load(folder).classifier
    wanted = predict(classifier, pictures, temperature=kept["temperature"])
    found = [row["probability"] for row in rows_of(out)]
    assert np.allclose(found, wanted.probabilities.max(-1).values, rtol=1e-5)
    names.write_text("cat\ndog\n")
    assert run(folder, pictures, f"--classes={names}") == 0
    assert "not calibrated" in capsys.readouterr().err
    (folder / "calibration.json").write_text('{"temperature": -1}')
    assert run(folder, pictures) == 2
    assert "calibration.json is damaged" in capsys.readouterr().err


# ---- kills -------------------------------------------------------------------------------------


def tortured(tuned: Path, pictures: Path, above: Path, kills: int, where: list[str]) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        clip = load_clip("tiny-shapes")
        patch.setattr(command, "clip_of", lambda config, device: clip)

        def start(folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            out, more = folder / "a.csv", f"--embeddings={folder / 'emb.npz'}"
            how = ["--batch=2", f"--out={out}", more, "--device=cpu", *where]
            assert run(tuned, pictures, *how) == 0

        ray = installed(patch)
        torture(start, above, kills, f"predict-{kills}")
        assert ("do" in ray.calls) == bool(where)
        (above / "done").touch()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a fork with CUDA cannot go on")
@pytest.mark.parametrize(
    ("kills", "where"),
    [
        pytest.param(8, [], id="8"),
        pytest.param(60, [], id="60", marks=pytest.mark.slow),
        # the process that hands out the pictures is killed; the workers compute in it, too
        pytest.param(5, ["--ray"], id="workers"),
    ],
)
def test_killed_and_started_again_it_writes_the_same_files(tuned, pictures, tmp_path, kills, where):
    process = processes.start(tortured, tuned, pictures, tmp_path, kills, where)
    process.join()
    assert (tmp_path / "done").exists(), "see the process's standard error"


def test_batches_without_settings_are_not_used(tuned, pictures, tmp_path):
    """Their removal was stopped, and they may be of other settings."""
    out, parts = tmp_path / "a.csv", tmp_path / ".a.csv.parts"
    parts.mkdir()
    (parts / "00000000.safetensors").write_bytes(b"of another run")
    assert run(tuned, pictures, f"--out={out}") == 0
    assert len(rows_of(out)) == 6
    assert not parts.exists()
