"""``fastprompt evaluate RUN``: what is judged, where it goes, and what the exit code says."""

import csv
import json

import pytest
import torch
from helpers import processes
from helpers.models import small_model

from fastprompt import APTTuner, load_clip, load_data
from fastprompt.cli import evaluate as cli_evaluate
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.evaluation import Evaluation
from fastprompt.evaluation.record import Record

TUNE = "tune apt --device=cpu --data=patterns --shots=1 --epochs=1 --steps=1 --n_ctx=2"
TUNE += " --eps=2/255 --sanity=off"
SMALL = "--attacks=pgd-2 --limit=12 --batch=5 --eps=2/255 --sanity=off"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        command = f"{TUNE} --attacks=clean,pgd-2 --eval_limit=12 --out={folder}"
        assert main(command.split()) == 0
    return folder


def evaluate(*arguments):
    return main(["evaluate", *SMALL.split(), *(str(a) for a in arguments)])


def test_a_run_is_judged_beside_zero_shot(tuned, capsys):
    assert evaluate(tuned) in (0, 1)
    out = capsys.readouterr().out
    folder = max((tuned / "evaluations").iterdir(), key=lambda p: int(p.name))
    assert f"evaluation folder: {folder}" in out
    result = Evaluation.load(folder / "result.json")
    assert [r["model"] for r in result.rows] == ["zero-shot", "tuned"] * 2
    assert result.data["n"] == 12
    assert {p.name for p in folder.iterdir()} == {
        *("job.json", "progress.jsonl", "result.json", "examples.safetensors", ".lock"),
    }
    # the same images and attack as the run's own evaluation: the same flags
    own = Evaluation.load(tuned / "result.json")
    for model in ("zero-shot", "tuned"):
        rows = (e.row(model, "pgd-2", "2/255")["flags"] for e in (result, own))
        assert len(set(rows)) == 1


def test_radii_are_named_as_attacks_are(tuned, tmp_path):
    evaluate(tuned, "--eps=1/255,2/255", "--limit=4", f"--out={tmp_path / 'a'}")
    rows = Evaluation.load(tmp_path / "a" / "result.json").rows
    assert {round(255 * row["eps"]) for row in rows} == {0, 1, 2}


def test_one_that_is_stopped_says_how_to_go_on(tuned, tmp_path, monkeypatch, capsys):
    def judge(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastprompt.cli.evaluate._evaluate", judge)
    out = tmp_path / "mine"
    assert evaluate(tuned, f"--out={out}") == 130
    assert f"fastprompt evaluate --resume {out}" in capsys.readouterr().err


def test_each_evaluation_has_a_folder_of_its_own(tuned, tmp_path):
    before = set((tuned / "evaluations").iterdir())
    evaluate(tuned)
    assert len(set((tuned / "evaluations").iterdir()) - before) == 1
    out = tmp_path / "mine"
    evaluate(tuned, f"--out={out}")
    assert (out / "result.json").exists()
    assert evaluate(tuned, f"--out={out}") == 2


def test_zero_shot_without_a_run(tmp_path):
    evaluate("--data=patterns", f"--out={tmp_path / 'z'}")
    result = Evaluation.load(tmp_path / "z" / "result.json")
    assert [r["model"] for r in result.rows] == ["zero-shot"] * 2


def test_defenses_are_judged_with_and_without(tuned, tmp_path):
    evaluate(tuned, "--defenses=bits-5", f"--out={tmp_path / 'd'}")
    result = Evaluation.load(tmp_path / "d" / "result.json")
    assert list(result.models) == ["zero-shot", "tuned", "zero-shot + bits-5", "tuned + bits-5"]
    assert result.models["tuned + bits-5"]["defenses"] == ["BitDepth(bits=5)"]
    assert {r["path"] for r in result.rows} == {"none", "adaptive"}


def test_other_images(tuned, tmp_path):
    evaluate(tuned, "--data=counts", f"--out={tmp_path / 'c'}")
    assert Evaluation.load(tmp_path / "c" / "result.json").data["name"] == "counts"


def test_several_seeds(tuned, tmp_path, capsys):
    evaluate(tuned, "--seeds", 1, 2, f"--out={tmp_path / 's'}")
    evaluate(tuned, "--seeds", 1, 2)
    names = {p.name for p in (tmp_path / "s").iterdir()}
    assert names == {"job.json", "seed-1", "seed-2", ".lock"}
    assert "(" in capsys.readouterr().out
    for folder in (tmp_path / "s", tuned):
        assert main(["report", str(folder), f"--out={tmp_path / 'r.html'}"]) == 0
        with (tmp_path / "r.csv").open() as file:
            assert {"1", "2"} <= {row["evaluation_seed"] for row in csv.DictReader(file)}
    each = [Evaluation.load(tmp_path / "s" / f"seed-{s}" / "result.json") for s in (1, 2)]
    assert each[0].data["indices"] != each[1].data["indices"]


def test_a_stopped_evaluation_goes_on(tuned, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    code = evaluate(tuned, f"--out={whole}")
    real, count = Record.add, [0]

    def stop(self, *arguments):
        real(self, *arguments)
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Record, "add", stop)
    assert evaluate(tuned, f"--out={part}") == 130
    assert not (part / "result.json").exists()
    monkeypatch.setattr(Record, "add", real)
    assert main(["evaluate", f"--resume={part}"]) == code
    one, other = (json.loads((p / "result.json").read_text()) for p in (whole, part))
    for result in (one, other):
        for row in result["rows"]:
            row.pop("seconds")
    assert one == other


def test_a_folder_in_use_is_refused(tuned, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with processes.locking(out):
        assert evaluate(tuned, f"--out={out}") == 2
    assert str(out) in (err := capsys.readouterr().err)
    assert "another process" in err
    evaluate(tuned, f"--out={out}")
    with processes.locking(out):
        assert main(["evaluate", f"--resume={out}"]) == 2
    assert "another process" in capsys.readouterr().err


def test_an_evaluation_by_python_is_resumed_in_python(tuned, capsys):
    assert main(["evaluate", f"--resume={tuned}"]) == 2
    assert "evaluate(..., resume=True)" in capsys.readouterr().err


def test_the_exit_code_says_whether_to_trust_it(tuned, tmp_path, monkeypatch, capsys):
    from fastprompt.evaluation import job
    from fastprompt.evaluation.sanity import Verdict

    for verdict, code in (("passed", 0), ("failed", 1)):
        found = [Verdict("made up", verdict, "a reason")]
        monkeypatch.setattr(job, "check_model", lambda *a, found=found: found)
        assert evaluate(tuned, "--sanity=quick", f"--out={tmp_path / verdict}") == code
        out = capsys.readouterr().out
        assert ("! not to be trusted: tuned, made up: a reason" in out) is bool(code)
        saved = json.loads((tmp_path / verdict / "result.json").read_text())
        assert saved["trusted"] is not bool(code)


def test_sanity_asks_for_all_checks(tuned, tmp_path, monkeypatch):
    from fastprompt.evaluation import job
    from fastprompt.evaluation.sanity import FULL, QUICK

    asked = []
    monkeypatch.setattr(job, "check_model", lambda sample, depth, *_: asked.append(depth) or [])
    evaluate(tuned, f"--out={tmp_path / 'a'}")
    evaluate(tuned, "--sanity=quick", f"--out={tmp_path / 'q'}")
    evaluate(tuned, "--sanity=full", f"--out={tmp_path / 'b'}")
    assert asked == [QUICK, QUICK, FULL, FULL]


def test_the_search_in_another_precision(tuned, tmp_path, capsys):
    low = ["--search-precision=bf16", "--seeds", "1", "2"]
    assert evaluate(tuned, *low, "--confirm=false", f"--out={tmp_path / 'low'}") in (0, 1)
    assert "\nzero-shot, tuned: searched in bf16, judged in fp32\n" in capsys.readouterr().out
    rows = Evaluation.load(tmp_path / "low" / "seed-2" / "result.json").rows[2:]
    assert {(row["precision"], row["search_precision"]) for row in rows} == {("fp32", "bf16")}
    assert not any("confirmed" in row for row in rows)
    assert main(["report", str(tmp_path / "low" / "seed-2"), f"--out={tmp_path / 'r.html'}"]) == 0
    (table,) = tmp_path.glob("*.csv")
    lines = list(csv.DictReader(table.open()))
    assert [line["search_precision"] for line in lines] == ["", "", "bf16", "bf16"]
    assert {line["precision"] for line in lines} == {"fp32"}


def test_a_stopped_evaluation_of_an_earlier_version_searches_as_it_did(
    tuned, tmp_path, monkeypatch
):
    assert evaluate(tuned, f"--out={tmp_path}", "--search_precision=own") in (0, 1)
    job = json.loads((tmp_path / "job.json").read_text())
    old = {k: v for k, v in job.items() if k != "search_precision"} | {"confirm": False}
    (tmp_path / "job.json").write_text(json.dumps(old))
    (tmp_path / "result.json").unlink()
    monkeypatch.setattr("fastprompt.evaluation.search.multiplies_bf16", lambda device: True)
    assert main(["evaluate", f"--resume={tmp_path}"]) in (0, 1)
    rows = Evaluation.load(tmp_path / "result.json").rows[2:]
    assert {row["search_precision"] for row in rows} == {"own"}


def test_workers_decode_the_images(tuned, tmp_path, monkeypatch):
    given = []
    real = cli_evaluate.evaluate
    monkeypatch.setattr(
        cli_evaluate,
        "evaluate",
        lambda *a, workers, **k: given.append(workers) or real(*a, **k),
    )
    assert evaluate(tuned, "--workers=2", f"--out={tmp_path / 'a'}") in (0, 1)
    assert evaluate(tuned, f"--out={tmp_path / 'b'}") in (0, 1)
    assert given == [2, 0]
    assert evaluate(tuned, "--workers=-1", f"--out={tmp_path / 'c'}") == 2


def test_tune_passes_the_precision_of_the_search_on(tmp_path):
    command = f"{TUNE} --attacks=pgd-1 --eval_limit=6 --out={tmp_path / 'run'}"
    assert main([*command.split(), "--search_precision=bf16"]) == 0
    rows = Evaluation.load(tmp_path / "run" / "result.json").rows[2:]
    assert {row["search_precision"] for row in rows} == {"bf16"}
    job = json.loads((tmp_path / "run" / "config.json").read_text())["job"]
    assert (job["search_precision"], job["confirm"]) == ("bf16", True)


def test_what_was_refused_leaves_its_folder_free(tuned, tmp_path):
    out = tmp_path / "again"
    assert evaluate("--data=patterrns", f"--out={out}") == 2
    assert not out.exists()
    blind = ["--attacks=feature-pgd-1", "--defenses=bits-5"]
    assert evaluate("--data=patterns", f"--out={out}", *blind) == 2
    assert evaluate("--data=patterns", f"--out={out}") in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "config.json"),
        ([], "--clip"),
        (["--attacks=pdg-20", "RUN"], "'pgd-20'"),
        (["--eps=4", "RUN"], " 4/255"),
        (["--defenses=jpg-75", "RUN"], "'jpeg'"),
        (["--seeds", "1", "1", "--data=patterns", "--out=x"], "[1, 1]"),
        (["--data=nothing", "RUN"], "nothing"),
    ],
)
def test_bad_input(tuned, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tuned.iterdir())
    given = [str(tuned) if a == "RUN" else a for a in arguments]
    assert main(["evaluate", *given]) == 2
    assert message in capsys.readouterr().err
    assert set(tuned.iterdir()) - before <= {tuned / "evaluations"}
    assert main(["evaluate", f"--resume={tmp_path}"]) == 2
    assert "job.json" in capsys.readouterr().err


def test_another_device_keeps_the_runs_normalization(tmp_path, capsys):
    clip = load_clip("tiny-shapes", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    tuner = APTTuner(clip, load_data("patterns").classnames, n_ctx=2)
    run = tuner.save(tmp_path / "run", job={"job": {"data": "patterns"}})
    assert clip.source["std"] == [0.4, 0.5, 0.6]
    for device in ((), ("--device=cpu",)):
        out = tmp_path / f"out{len(device)}"
        assert evaluate(run, *device, f"--out={out}") in (0, 1), capsys.readouterr().err
    one, other = (Evaluation.load(tmp_path / name / "result.json") for name in ("out0", "out1"))
    assert [r["flags"] for r in one.rows] == [r["flags"] for r in other.rows]


def test_a_gray_model_is_tuned_and_evaluated_on_gray_images(tmp_path, monkeypatch):
    def gray(name):
        model = small_model()
        model.visual.conv1 = torch.nn.Conv2d(1, 32, 16, stride=16, bias=False)
        model.visual.image_mean, model.visual.image_std = (0.5,), (0.25,)
        return model

    monkeypatch.setattr(bundled, "load", gray)
    run = tmp_path / "run"
    command = f"{TUNE} --attacks=clean,pgd-2,feature-pgd-2 --eval_limit=6 --out={run}"
    assert main(command.split()) == 0
    assert evaluate(run, "--defenses=jpeg-75,bits-4", f"--out={tmp_path / 'again'}") in (0, 1)
    assert main(["report", str(run), f"--out={tmp_path / 'r.html'}"]) == 0
