"""Whatever is killed, and whenever, ends with the files and the bits of an undisturbed run."""

import os
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch
from helpers.fake_ray import installed
from helpers.kills import Strike, attempt, torture
from helpers.models import small_model
from helpers.processes import start
from tqdm import tqdm

from fastprompt import load_clip, load_data
from fastprompt.cli import evaluate, tune_run
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.evaluation import model_run

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a fork with CUDA cannot backpropagate"),
]

TUNE = [
    *("--device=cpu", "--data=patterns", "--shots=1", "--epochs=2", "--steps=1", "--n_ctx=2"),
    *("--batch=3", "--lr=0.1", "--keep=best", "--eps=8/255"),
    *("--attacks=clean,pgd-1", "--eval_eps=8/255", "--eval_limit=4", "--eval_batch=2"),
    "--sanity=off",
]
METHODS = {
    "advpt": ["--attack_batch=1"],
    "apt": ["--eps_min=1/255"],
    "ampt": ["--n_prompts=2", "--clean_share=0.25", "--load_balance=0.1"],
    "capt": ["--optimizer=adamw"],
    "nap": ["--accumulate=2"],
}
EVALUATE = [
    *("--data=patterns", "--device=cpu", "--attacks=pgd-1,apgd-ce-2", "--eps=8/255"),
    *("--limit=4", "--batch=2", "--sanity=off", "--defenses=bits-4", "--seeds", "1", "2"),
]


def command(marker: str, start: list[str], always: tuple[str, ...] = ()):
    """Starts a command, or resumes it if its folder has the file ``marker``."""

    def run(folder: Path) -> None:
        begun = (folder / marker).exists()
        words = 2 if start[0] == "tune" else 1
        more = [f"--resume={folder}"] if begun else [*start[words:], f"--out={folder}"]
        assert main([*start[:words], *more, *always]) in (0, 1)

    return run


RUNS = {
    **{m: command("config.json", ["tune", m, *TUNE, *own]) for m, own in METHODS.items()},
    "seeds": command(
        "seeds.json", ["tune", "advpt", *TUNE, *METHODS["advpt"], "--seeds", "1", "2"]
    ),
    "evaluation": command("job.json", ["evaluate", *EVALUATE]),
    # the process that hands out the items and writes is killed; the workers compute in it, too
    "bank-on-workers": command(
        "config.json", ["tune", "advpt", *TUNE, *METHODS["advpt"]], ("--ray",)
    ),
    "evaluation-on-workers": command("job.json", ["evaluate", *EVALUATE], ("--ray",)),
}
FAST = {"seeds": 6, "capt": 6, "evaluation": 8}
SLOW = {**dict.fromkeys(RUNS, 9), "bank-on-workers": 3, "evaluation-on-workers": 4}


def tortured(name: str, kills: int, above: Path) -> None:
    """Write the traceback of what failed, if anything, to a file in the folder."""
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            ray = installed(patch)
            # the processes find a small model and the images in the memory that they fork from
            patch.setattr(bundled, "load", lambda name: small_model())
            clip = load_clip("tiny-shapes")
            data = load_data("patterns", shots=1, image_size=clip.image_size)
            for module in (tune_run, evaluate):
                patch.setattr(module, "model_of", lambda job: clip)
                patch.setattr(module, "load_data", lambda *a, **k: data)
            patch.setattr(model_run, "WINDOW", 1)  # more lines in progress.jsonl
            torture(RUNS[name], above, kills, f"{name}-{kills}")
            assert ("do" in ray.calls) == name.endswith("on-workers")
    except BaseException:
        (above / "failed").write_text(traceback.format_exc())
        raise


@pytest.mark.parametrize(
    ("name", "kills"),
    [*FAST.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW.items())],
)
def test_killed_and_resumed_it_ends_with_the_same_bits(name, kills, tmp_path):
    # from a new process: the threads of other tests' backward passes do not survive a fork
    process = start(tortured, name, kills, tmp_path)
    process.join()
    failed = tmp_path / "failed"
    assert process.exitcode == 0, failed.read_text() if failed.exists() else "killed itself"


def killed_in_its_bar(above: Path) -> None:
    next(iter(tqdm([1], disable=False)))  # makes the lock, before a process forks

    def holds_the_lock(folder: Path) -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert attempt(holds_the_lock, above / "killed", Strike())
    # killed after 20 seconds if it waits for the lock of the killed one
    assert not attempt(lambda folder: list(tqdm([1])), above / "next", Strike(20))


def test_a_process_killed_while_it_draws_its_bar_does_not_hang_the_next_one(tmp_path):
    process = start(killed_in_its_bar, tmp_path)
    process.join()
    assert process.exitcode == 0
