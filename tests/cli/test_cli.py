"""The command line: exit codes, one line for each error, and a run from start to table."""

import contextlib
import io
import json
import os
import runpy
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from helpers import processes
from helpers.models import small_model
from safetensors import SafetensorError

from fastprompt import AdvPTTuner, kernels, load_clip, load_data
from fastprompt._utils.files import read_tensors, write_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt._utils.versions import versions
from fastprompt.attacks import FeaturePGD
from fastprompt.cli import tune as cli_tune
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.data.seen import seen_by
from fastprompt.evaluation import Evaluation
from fastprompt.methods.advpt import AdvPTConfig
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.config import as_dict
from fastprompt.tuning.identity import EXECUTION
from fastprompt.tuning.tuner import Tuner

SMALL_RUN = [
    *("tune", "advpt", "--clip", "tiny-shapes", "--device", "cpu", "--data", "patterns"),
    *("--shots", "2", "--epochs", "2", "--steps", "2", "--n_ctx", "2", "--eval_limit", "20"),
    "--sanity=off",
    "--eps=8/255",
]
THREE = "--attacks=[clean,pgd-2,feature-pgd-2]"
CLEAN = "--attacks=clean"


@pytest.fixture(autouse=True)
def _one_thread():
    """The bits depend on the number of threads, and so small a model needs no more."""
    torch.set_num_threads(1)


def use_small_model(patch):
    """A small random model in the place of the bundled one."""
    patch.setattr(bundled, "names", lambda: ["tiny-photos", "tiny-shapes"])
    patch.setattr(bundled, "load", lambda name: small_model())


@pytest.fixture
def tiny(monkeypatch):
    use_small_model(monkeypatch)


@pytest.fixture
def call(tiny, capsys):
    """Runs a command; its exit code, output and errors."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call):
    """Runs a command that must fail with one line that holds all of ``parts``."""

    def run(*arguments, parts):
        code, _, err = call(*arguments)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert err.startswith("error: ")
        for part in parts:
            assert str(part) in err
        return err

    return run


class Finished:
    """A run from start to end, and what it printed."""

    def __init__(self, path):
        self.path, out, err = path, io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            use_small_model(patch)
            torch.set_num_threads(1)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.code = main([*SMALL_RUN, THREE, "--out", str(path)])
        self.out, self.err = out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in finished.path.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def prompts_of(folder):
    return read_tensors(Path(folder) / "prompts.safetensors", "prompts")[0]["tokens"]


# ---- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["-h"], 0), (["--help"], 0), (["tune"], 2)]
)
def test_without_a_command_the_usage_is_printed(call, arguments, code):
    found, out, err = call(*arguments)
    assert found == code
    assert out.startswith("usage: fastprompt ")
    assert "METHOD" in out
    assert err == ""


def test_help_of_a_command(call):
    for arguments in (("tune", "--help"), ("tune", "advpt", "--help"), ("doctor", "-h")):
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: fastprompt {arguments[0]}")


def test_help_of_a_method_lists_its_settings_and_the_jobs(call):
    _, out, _ = call("tune", "advpt", "--help")
    for name in ("clip", "data", "shots", "out", "resume", "config", "attacks", "eval_eps"):
        assert f"--{name} " in out
    for name in ("epochs", "lr", "n_ctx", "eps", "steps", "start", "bank_dir"):
        assert f"--{name} " in out


# ---- wrong arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("tun", ["command", "'tun'", "'tune'"]),
        ("--verson", ["command", "'--verson'", "doctor", "tune"]),
        ("tune advp", ["method", "'advp'", "'advpt'"]),
        ("tune advpt --epocs 3", ["option", "--epocs", "'--epochs'"]),
        ("tune advpt --epoch 3", ["option", "'--epochs'"]),
        ("tune advpt --epoch=3", ["option", "'--epochs'"]),
        ("tune advpt --dta shapes", ["option", "--dta", "'--data'"]),
        ("tune advpt extra", ["extra"]),
        ("tune advpt --epochs", ["--epochs", "one argument"]),
        ("tune advpt --clip tiny-shape", ["model", "'tiny-shapes'"]),
        ("tune advpt --clip ViT-B-33", ["model", "'ViT-B-32'"]),
        ("tune advpt --clip ViT-B-32", ["error: pretrained ", "ViT-B-32"]),
        ("tune advpt --data shpes", ["data", "'shpes'", "'shapes'"]),
        ("tune advpt --data ./none", ["error: data", "./none"]),
        ("tune advpt --shots 0", ["error: shots ", " 1", " 0"]),
        ("tune advpt --shots few", ["shots", "few"]),
        ("tune advpt --classes some", ["classes", "'base'", "some"]),
        ("tune advpt --device gpu", ["error: device ", "cuda:0", "'gpu'"]),
        ("tune advpt --attacks [pdg-20]", ["attack", "'pdg-20'", "'pgd-20'"]),
        ("tune advpt --attacks pgd-0", ["attack", "'pgd-0'"]),
        ("tune advpt --attacks []", ["error: attacks ", "empty"]),
        ("tune advpt --eval_eps 8", ["error: eval_eps ", "8/255"]),
        ("tune advpt --eval_eps [4/255,-1]", ["error: eval_eps ", " 0", " -1"]),
        ("tune advpt --eval_eps []", ["eps ", "empty"]),
        ("tune advpt --eval_limit 0", ["error: eval_limit ", " 1", " 0"]),
        ("tune advpt --eval_batch 0", ["error: eval_batch ", " 1", " 0"]),
        ("tune advpt --eps 8", ["error: eps ", "8/255"]),
        ("tune advpt --eps 0", ["error: eps ", " 0"]),
        ("tune advpt --eps -4/255", ["--eps", "expected one argument"]),
        ("tune advpt --eps=-4/255", ["error: eps ", " 0", "'-4/255'"]),
        ("tune advpt --eps 8/0", ["error: eps ", "4/255", "'8/0'"]),
        ("tune advpt --epochs 2.5", ["epochs", "int", "2.5"]),
        ("tune advpt --n_ctx 0", ["error: n_ctx ", " 1", " 0"]),
        ("tune advpt --n_ctx 80", ["error: classnames", "77", "n_ctx"]),
        ("tune advpt --start middle", ["start", "'two-sided'", "middle"]),
        ("tune advpt --config none.yaml", ["error: config", "none.yaml"]),
        ("doctor now", ["doctor", "options", "'now'"]),
    ],
)
def test_a_wrong_argument_is_one_line_with_a_remedy(
    refused, tmp_path, monkeypatch, arguments, parts
):
    monkeypatch.chdir(tmp_path)
    refused(*arguments.split(), parts=parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epoch: 3", ["config", "'epoch'", "'epochs'"]),
        ("epochs: many", ["config", "epochs", "many"]),
        ("eps: 8", ["error: eps ", "8/255"]),
        ("lr: [1", ["error: config", "settings.yaml", "YAML"]),
        ("- 1", ["error: config", "settings.yaml", " list"]),
    ],
)
def test_a_wrong_config_file_is_one_line_with_a_remedy(refused, tmp_path, text, parts):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    refused("tune", "advpt", "--config", path, "--out", tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    ["--attacks=[clean,pdg-20]", "--eval_eps=9", "--eval_limit=0", "--eval_batch=-1"],
)
def test_what_the_evaluation_refuses_is_told_before_the_model_is_loaded(
    refused, monkeypatch, wrong
):
    def load(*arguments, **options):
        pytest.fail("work has begun")

    monkeypatch.setattr("fastprompt.cli.parser.load_clip", load)
    refused("tune", "advpt", wrong, parts=[])


def test_a_folder_that_is_taken_is_told_before_anything_is_printed(call, finished):
    code, out, err = call(*SMALL_RUN, "--out", finished.path)
    assert (code, out) == (2, "")
    assert "--resume" in err


def test_a_tuning_is_judged_at_small_radii_too(finished):
    # the tuning radius alone may leave nothing to see on a small model
    rows = Evaluation.load(finished.path / "result.json").rows
    assert {round(255 * row["eps"]) for row in rows} == {0, 1, 2, 8}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_told(refused):
    refused("tune", "advpt", "--device", "cuda:1", parts=["device", "cuda:1", "use cpu"])


def test_the_process_ends_with_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastprompt", "tune", "advpt", "--epocs", "3"])
    monkeypatch.delitem(sys.modules, "fastprompt.cli.__main__", raising=False)
    with pytest.raises(SystemExit) as done:
        runpy.run_module("fastprompt.cli", run_name="__main__")
    assert done.value.code == 2
    assert "'--epochs'" in capsys.readouterr().err


def test_the_command_is_installed():
    (script,) = entry_points(group="console_scripts", name="fastprompt")
    assert script.load() is main


def test_stopping_by_hand_says_how_to_go_on(call, tmp_path, monkeypatch):
    def fit(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "fit", fit)
    code, _, err = call(*SMALL_RUN, "--out", tmp_path / "run")
    assert code == 130
    assert "--resume" in err


# ---- a whole run -----------------------------------------------------------------------------


def test_a_run_ends_with_the_table(finished):
    assert finished.code == 0
    lines = finished.out.splitlines()
    assert lines[0] == (
        f"advpt on tiny-shapes, patterns: 6 classes, 12 training images; run folder {finished.path}"
    )
    assert lines[-1] == f"run folder: {finished.path}"
    table = lines[lines.index("") + 1 : len(lines) - lines[::-1].index("") - 1]
    assert table[0].split() == ["attack", "path", "eps", "zero-shot", "tuned"]
    assert [row.split()[:3] for row in table[2:]] == [
        ["clean", "none", "0"],
        *(["pgd-2", "adaptive", f"{eps}/255"] for eps in (1, 2, 8)),
        *(["feature-pgd-2", "transfer:image-encoder", f"{eps}/255"] for eps in (1, 2, 8)),
    ]
    for row in table[2:]:
        assert row.count(" % [") == 2


def test_no_progress_bar_where_the_output_is_no_terminal(finished):
    assert finished.err == ""
    assert "\r" not in finished.out


def test_a_progress_bar_in_a_terminal(call, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([*SMALL_RUN, CLEAN, "--out", str(tmp_path / "run")]) == 0
    begun = "loading patterns and tiny-shapes\n"
    assert sys.stderr.getvalue().startswith(begun)
    for title in ("train bank", "val bank", "tune advpt", "evaluate"):
        assert title in sys.stderr.getvalue()


def test_the_first_line_in_a_terminal_comes_before_the_slow_imports(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.delitem(sys.modules, "torch")
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == "loading torch and open_clip\n"
    assert main(["tune", "--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "data", "shots"),
    [
        *((method, "photos", 4) for method in TUNERS),
        ("advpt --data patterns", "patterns", "all"),
        ("advpt --data=shapes --shots=4", "shapes", 4),
        ("nap --data shapes", "shapes", 16),
    ],
)
def test_the_default_job_is_small(monkeypatch, arguments, data, shots):
    jobs = []
    monkeypatch.setattr(cli_tune, "run_job", lambda method, job, *rest, **more: jobs.append(job))
    assert cli_tune.tune(arguments.split()) == 0
    assert (jobs[0]["data"], jobs[0]["shots"], jobs[0]["eval_limit"]) == (data, shots, 200)
    assert jobs[0]["eval_eps"] == (None if "--data" in arguments else "1/255")
    assert jobs[0]["clip"] == "tiny-photos"


def test_the_table_says_which_images_were_drawn(finished):
    assert "20 of 1,200 test images of patterns (6 classes), drawn by seed 0" in finished.out
    assert "with 95 % intervals" in finished.out


def test_only_models_of_photographs_have_seen_the_photographs(finished):
    for data in ("photos", "photos-jpeg-3"):
        assert "has seen these classes, but not" in seen_by("tiny-photos-robust", data)
    assert "but not the test images" in seen_by("tiny-photos", "coop:Caltech101")
    for model, data in (
        ("tiny-photos", "shapes"),
        ("tiny-shapes", "photos"),
        ("ViT-B-32", "photos"),
    ):
        assert seen_by(model, data) == ""
    assert "has seen" not in finished.out


def test_the_preset_of_a_bundled_model_is_shown(finished):
    line = next(line for line in finished.out.splitlines() if line.startswith("preset: "))
    # those of its settings that no option overrides
    assert line == "preset: ctx_init=a photo of a, lr=2.0"


def test_the_precision_is_shown_with_its_reason(finished):
    lines = finished.out.splitlines()
    assert "precision: fp32 (this CPU has no bfloat16 units)" in lines


PUBLISHED = [
    *("tune", "advpt", "--device=cpu", "--data=patterns", "--shots=2", "--published"),
    *("--epochs=1", "--steps=2", "--eval_limit=20", "--sanity=off", CLEAN),
]


def test_published_settings_replace_defaults_and_preset(call, tmp_path):
    """Options override them, and a settings file does; a resumed run keeps them."""
    file, folder = tmp_path / "settings.yaml", tmp_path / "run"
    file.write_text("batch: 5\nsteps: 3\n")
    code, out, _ = call(*PUBLISHED, "--config", file, "--out", folder)
    assert code == 0
    assert "preset" not in out
    config = json.loads((folder / "config.json").read_text())["config"]
    wanted = as_dict(AdvPTConfig.published(batch=5, epochs=1, steps=2, n_ctx=32))
    assert {k: config[k] for k in wanted if k not in ("precision", *EXECUTION)} == {
        k: v for k, v in wanted.items() if k not in ("precision", *EXECUTION)
    }
    assert call("tune", "advpt", "--resume", folder)[0] == 0
    assert json.loads((folder / "config.json").read_text())["config"] == config


def test_published_settings_of_several_seeds(call, tmp_path):
    code, _, _ = call(*PUBLISHED, "--seeds", 3, 4, "--out", tmp_path / "runs")
    assert code == 0
    for seed in (3, 4):
        stored = json.loads((tmp_path / "runs" / f"seed-{seed}" / "config.json").read_text())
        assert (stored["config"]["seed"], stored["data"]["seed"]) == (seed, seed)
        assert (stored["config"]["start"], stored["config"]["clamp"]) == ("one-sided", "steps")
        assert stored["config"]["n_ctx"] == 32


@pytest.mark.parametrize("method", ["ampt", "capt"])
def test_a_method_without_public_code_has_no_published_settings(refused, method):
    refused("tune", method, "--published", parts=["published", "no code"])


def test_the_run_folder_is_complete(finished):
    assert {p.name for p in finished.path.iterdir()} == {
        *("config.json", "metrics.jsonl", "state.safetensors", "prompts.safetensors"),
        *("best.safetensors", "last.safetensors", "result.json", "banks"),
        *("progress.jsonl", "examples.safetensors", ".lock"),
        *("report.html", "report.csv", "report.md", "report.tex"),
    }
    assert all(p.suffix == ".safetensors" for p in (finished.path / "banks").iterdir())
    run = RunFolder(finished.path)
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]
    for row in run.read_metrics():
        assert {"loss", "lr", "accuracy", "val_accuracy", "seconds"} <= set(row)
    config = run.read_config()
    assert config["method"] == "advpt"
    assert config["config"]["epochs"] == 2
    assert (config["data"]["name"], config["data"]["shots"]) == ("patterns", 2)
    assert not {"data", "shots", "classes", "data_seed"} & config["job"].keys()
    assert config["versions"] == versions()
    assert prompts_of(finished.path).shape == (2, 24)


def test_the_result_has_a_row_for_each_model_and_attack(finished):
    result = json.loads((finished.path / "result.json").read_text())
    rows = {(r["model"], r["attack"]): r for r in result["rows"]}
    paths = {"clean": "none", "pgd-2": "adaptive", "feature-pgd-2": "transfer:image-encoder"}
    assert set(rows) == {(m, a) for m in ("zero-shot", "tuned") for a in paths}
    for (_, attack), row in rows.items():
        assert row["path"] == paths[attack]
        assert row["eps"] == (0.0 if attack == "clean" else 8 / 255)
        assert row["n"] == 20
        assert row["accuracy"] == row["correct"] / 20
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert row["trusted"] is True
        assert row["reasons"] == []
        assert {"stalled", "zero_gradients", "nonfinite_gradients", "settings", "seconds"} <= set(
            row
        )
    assert rows["tuned", "pgd-2"]["settings"]["steps"] == 2
    assert rows["tuned", "pgd-2"]["accuracy"] <= rows["tuned", "clean"]["accuracy"]
    assert result["trusted"] is True
    assert result["versions"] == versions()


def test_the_same_command_gives_the_same_bits(call, finished, tmp_path):
    assert call(*SMALL_RUN, THREE, "--out", tmp_path / "again")[0] == 0
    assert torch.equal(prompts_of(tmp_path / "again"), prompts_of(finished.path))
    results = []
    for folder in (finished.path, tmp_path / "again"):
        rows = json.loads((folder / "result.json").read_text())["rows"]
        results.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert results[0] == results[1]
    assert call(*SMALL_RUN, CLEAN, "--seed", 1, "--out", tmp_path / "other")[0] == 0
    assert not torch.equal(prompts_of(tmp_path / "other"), prompts_of(finished.path))


def test_one_attack_and_several_radii_by_themselves(call, tmp_path):
    radii = "--eval_eps=[0,0.02,4/255]"
    assert call(*SMALL_RUN, "--attacks", "pgd-2", radii, "--out", tmp_path / "run")[0] == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    tuned = [(r["attack"], r["eps"]) for r in rows if r["model"] == "tuned"]
    assert tuned == [("clean", 0), *(("pgd-2", eps) for eps in (0, 0.02, 4 / 255))]
    assert {r["attack"] for r in rows} == {"clean", "pgd-2"}


def test_a_radius_of_zero_is_not_the_default(call, tmp_path):
    eps = "--eval_eps=0"
    assert call(*SMALL_RUN, "--attacks", "pgd-2", eps, "--out", tmp_path / "run")[0] == 0
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    assert {r["eps"] for r in rows} == {0.0}


def test_without_out_a_new_folder_is_made_in_runs(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(*SMALL_RUN, CLEAN)
    assert code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("advpt-")
    assert out.endswith(f"run folder: runs/{folder.name}\n")


# ---- banks -----------------------------------------------------------------------------------


def test_a_bank_is_reused_until_what_it_depends_on_changes(tmp_path, monkeypatch):
    attacked = []
    run_attack = FeaturePGD.run

    def counted(self, images, **options):
        attacked.append(len(images))
        return run_attack(self, images, **options)

    monkeypatch.setattr(FeaturePGD, "run", counted)
    banks, clip = tmp_path / "banks", load_clip(small_model())
    few = {"epochs": 1, "steps": 2, "n_ctx": 2, "eps": 8 / 255, "bank_dir": banks}

    def images_attacked(data_seed=0, **options):
        attacked.clear()
        data = load_data("patterns", shots=2, seed=data_seed)
        tuner = AdvPTTuner(clip, data.classnames, **{**few, **options})
        tuner.fit(data.train, data.val, progress=False)
        return sum(attacked)

    both = 6 * 2 + 6 * 2  # two shots of six classes, for training and for validation
    assert images_attacked() == both
    kept = {p.name: p.read_bytes() for p in banks.iterdir()}
    assert len(kept) == 2
    for same in ({"eps": "8/255"}, {"n_ctx": 3}, {"lr": 0.1}, {"epochs": 2}, {"batch": 4}):
        assert images_attacked(**same) == 0
    assert {p.name: p.read_bytes() for p in banks.iterdir()} == kept
    for other in (
        *({"eps": "4/255"}, {"steps": 3}, {"alpha": "1/255"}, {"start": "one-sided"}, {"seed": 1}),
        *({"attack_batch": 5}, {"data_seed": 1}),
        # by default the step size follows radius and steps: here they change alone
        *({"alpha": "1/255", "eps": "4/255"}, {"alpha": "1/255", "steps": 3}),
    ):
        assert images_attacked(**other) == both
    assert images_attacked(**other) == images_attacked() == 0


def test_a_damaged_bank_is_not_used(refused, call, tmp_path):
    banks = tmp_path / "banks"
    command = [*SMALL_RUN, CLEAN, "--bank_dir", banks, "--out"]
    assert call(*command, tmp_path / "first")[0] == 0
    for file in banks.iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    refused(*command, tmp_path / "second", parts=[banks, " digest ", "remove"])


# ---- --out -----------------------------------------------------------------------------------


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_out_may_not_hold_a_run(refused, run_folder):
    before = contents(run_folder)
    refused(*SMALL_RUN, "--out", run_folder, parts=["error: out", run_folder, "--resume"])
    assert contents(run_folder) == before


def test_out_may_not_hold_other_files(refused, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(*SMALL_RUN, "--out", tmp_path, parts=["error: out", tmp_path, "files"])
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_out_may_not_be_a_file(refused, tmp_path):
    (tmp_path / "run").write_text("file")
    refused(*SMALL_RUN, "--out", tmp_path / "run", parts=[tmp_path / "run"])
    assert contents(tmp_path) == {"run": b"file"}


@pytest.mark.parametrize("option", ["--out", "--resume"])
@pytest.mark.parametrize("command", [SMALL_RUN, ["evaluate", "--data=patterns"]])
def test_a_folder_without_a_name_is_refused(refused, tmp_path, monkeypatch, command, option):
    monkeypatch.chdir(tmp_path)
    words = 2 if command[0] == "tune" else 1
    arguments = command if option == "--out" else command[:words]
    refused(*arguments, f"{option}=", parts=[f"error: {option}", "folder", "''"])
    assert contents(tmp_path) == {}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--out", "--resume"])
def test_two_processes_do_not_mix_their_files(refused, run_folder, tmp_path, option):
    new = tmp_path / "new"
    new.mkdir()
    folder = new if option == "--out" else run_folder
    before = contents(folder)
    arguments = [*SMALL_RUN, CLEAN] if option == "--out" else ["tune", "advpt"]
    with processes.locking(folder):
        refused(*arguments, f"{option}={folder}", parts=["another process", folder])
    assert contents(folder) | {".lock": b""} == before | {".lock": b""}


def test_save_and_fit_refuse_a_folder_in_use_or_without_a_name(small_clip, tmp_path):
    tuner = AdvPTTuner(small_clip, ["a", "b"], n_ctx=2)
    with pytest.raises(ValueError, match=r"^folder must"):
        tuner.save("")
    with processes.locking(tmp_path), pytest.raises(BlockingIOError, match=r"^folder: another"):
        tuner.save(tmp_path)


# ---- --resume --------------------------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing_but_the_times(call, finished, run_folder):
    code, out, err = call("tune", "advpt", "--resume", run_folder)
    assert (code, err) == (0, "")
    assert "feature-pgd-2" in out
    assert torch.equal(prompts_of(run_folder), prompts_of(finished.path))
    for file in ("config.json", "metrics.jsonl"):
        assert (run_folder / file).read_bytes() == (finished.path / file).read_bytes()


@pytest.mark.parametrize("option", ["--epochs=3", "--data=shapes", "--out=x", "--eval_limit=5"])
def test_resume_takes_no_other_options(refused, run_folder, option):
    before = contents(run_folder)
    name = option.split("=")[0]
    refused("tune", "advpt", "--resume", run_folder, option, parts=["error: --resume", name])
    assert contents(run_folder) == before


@pytest.mark.parametrize("there", [True, False])
def test_resume_needs_a_run(refused, tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    refused("tune", "advpt", "--resume", folder, parts=[folder, "run folder", "config.json"])
    assert folder.exists() == there


def test_resume_needs_a_whole_config(refused, run_folder):
    path = run_folder / "config.json"
    path.write_bytes(path.read_bytes()[:-20])
    refused("tune", "advpt", "--resume", run_folder, parts=[path, "JSON", "damaged"])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"method": "other"}, ["'other'", "'advpt'"]),
        ({"format": 2}, ["config.json", "format 2", " 1"]),
        ({"job": None}, ["command line"]),
        ({"job": {"clip": "tiny-shapes"}}, ["config.json", "'pretrained'"]),
        ({"config": {"epochs": 3}}, ["error: resume", "settings", "model", "data"]),
        ({"config": {"epoch": 3}}, ["config", "'epoch'", "'epochs'"]),
        ({"key": "0"}, ["error: resume", "settings", "model", "data"]),
    ],
)
def test_resume_refuses_a_config_that_does_not_fit(refused, run_folder, changes, parts):
    change_config(run_folder, **changes)
    before = contents(run_folder)
    refused("tune", "advpt", "--resume", run_folder, parts=parts)
    assert contents(run_folder) == before


def test_resume_refuses_other_weights(refused, run_folder, monkeypatch):
    monkeypatch.setattr(bundled, "load", lambda name: small_model(seed=1))
    refused("tune", "advpt", "--resume", run_folder, parts=[run_folder, "settings", "model"])


def test_resume_refuses_a_run_that_was_not_started_here(refused, tmp_path, small_clip):
    AdvPTTuner(small_clip, ["a", "b"], n_ctx=2).save(tmp_path / "run")
    run = tmp_path / "run"
    refused("tune", "advpt", "--resume", run, parts=["error: --resume", run, "command line"])


def test_resume_refuses_a_changed_state(refused, run_folder):
    path = run_folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    refused("tune", "advpt", "--resume", run_folder, parts=[path, " digest ", "remove"])


def test_resume_refuses_the_state_of_another_run(refused, run_folder):
    path = run_folder / "state.safetensors"
    tensors, metadata = read_tensors(path, "state")
    write_tensors(path, tensors, metadata | {"key": "0" * 64})
    refused("tune", "advpt", "--resume", run_folder, parts=[path, "settings", "data"])


# ---- the prompts of a run --------------------------------------------------------------------


def test_the_prompts_of_a_run_load_again(tiny, finished):
    tuner = AdvPTTuner.load(finished.path)
    assert torch.equal(tuner.prompts.tokens.detach(), prompts_of(finished.path))
    assert tuner.config.epochs == 2
    assert AdvPTTuner.load(finished.path, load_clip(small_model())).config == tuner.config


def test_changed_prompts_are_refused(tiny, run_folder):
    path = run_folder / "prompts.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 128]))
    with pytest.raises(ValueError, match=" digest ") as error:
        AdvPTTuner.load(run_folder)
    assert str(path) in str(error.value)


# ---- doctor ----------------------------------------------------------------------------------


def test_doctor_tells_what_is_there(call):
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    lines = [tuple(line.split(maxsplit=1)) for line in out.splitlines()]
    for item in versions().items():
        assert item in lines
    labels = [line[0] for line in lines]
    assert "device" in labels
    assert f"{torch.get_num_threads()} threads of {os.cpu_count()} cores" in out
    ops = [line[1].split(":")[0] for line in lines if line[0] == "kernel"]
    assert ops == [name for name in kernels.__all__ if not isinstance(getattr(kernels, name), type)]
    assert "pgd_step" in ops
    assert ("precision", "auto on cpu: fp32 (this CPU has no bfloat16 units)") in lines
    assert ("model", "tiny-shapes: loads and runs") in lines


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bad card"),
        FileNotFoundError("no weights"),
        KeyError("weights"),
        TypeError("a bad setting"),
        SafetensorError("cut short"),
        RuntimeError("other shapes"),
    ],
)
def test_doctor_fails_when_a_model_does_not_load(call, monkeypatch, error):
    def load(name):
        if name == "broken":
            raise error
        return small_model()

    monkeypatch.setattr(bundled, "names", lambda: ["broken", "tiny-shapes"])
    monkeypatch.setattr(bundled, "load", load)
    code, out, err = call("doctor")
    assert (code, err) == (1, "")
    assert f"broken: FAILS: {type(error).__name__}: {error}" in out
    assert "tiny-shapes: loads and runs" in out


def test_doctor_fails_when_a_model_gives_no_numbers(call, monkeypatch):
    def load(name):
        model = small_model()
        with torch.no_grad():
            model.visual.proj[0, 0] = float("nan")
        return model

    monkeypatch.setattr(bundled, "load", load)
    code, out, _ = call("doctor")
    assert code == 1
    assert "tiny-shapes: FAILS: its logits are not finite" in out


def test_doctor_tells_where_bf16_is_native(call, monkeypatch, bf16_units):
    monkeypatch.setattr(bundled, "names", list)
    _, out, _ = call("doctor")
    assert "auto on cpu: bf16 (cpu multiplies it natively)" in out


def test_doctor_fails_when_no_model_was_installed(call, monkeypatch):
    monkeypatch.setattr(bundled, "names", list)
    code, out, _ = call("doctor")
    assert code == 1
    assert "FAILS: no bundled model was installed" in out
