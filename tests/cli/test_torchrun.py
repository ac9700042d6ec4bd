"""``torchrun -m fastprompt tune``: one run, one output, one message if it fails."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.method_checks import EXACT, relative
from helpers.models import small_model
from helpers.ranks import commands

from fastprompt._utils.files import read_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt.cli.main import main
from fastprompt.clip import bundled

OPTIONS = (
    "--data patterns --shots 1 --n_ctx 2 --steps 1 --batch 8 --lr 0.1 --precision fp64 "
    "--attacks clean --eval_limit 6 --sanity off"
)
LOAD = bundled.load
TUNE = ["tune", "apt", *OPTIONS.split()]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    monkeypatch.chdir(tmp_path)


def prompts_of(folder: Path) -> torch.Tensor:
    return read_tensors(folder / "prompts.safetensors", "prompts")[0]["tokens"]


def table_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("zero-shot", "tuned  "))]


def errors_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_one_run_in_two_processes_and_its_end_in_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TUNE, "--epochs", "2", "--out", "alone"]) == 0
    wanted, line = capsys.readouterr().out, [*TUNE, "--epochs", "2", "--class-shards", "2"]
    first, second = commands(tmp_path, *[line] * 2)
    assert first[0] == second[0] == 0
    assert second[1] == ""
    (run,) = (tmp_path / "runs").iterdir()
    assert table_of(first[1]) == table_of(wanted)
    assert relative(prompts_of(run), prompts_of(tmp_path / "alone")) < EXACT
    (run / "prompts.safetensors").unlink()  # as if it had been stopped before the end
    ended = commands(tmp_path, *[["tune", "apt", "--resume", str(run)]] * 3)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert [output for _, output in ended][1:] == ["", ""]
    assert relative(prompts_of(run), prompts_of(tmp_path / "alone")) < EXACT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--batch", "1"], ["batch must be at least the number of processes, 2, got 1"]),
        (["--class_shards", "3"], ["class_shards must be 1 or the number of processes, 2, got 3"]),
        (["--seeds", "1", "2"], ["--seeds needs one process, got 2"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--nonsense", "1"], ["unknown option --nonsense"]),
    ],
)
def test_an_error_of_all_is_printed_once(
    changes: list[str], words: list[str], tmp_path: Path
) -> None:
    ended = commands(tmp_path, *[[*TUNE, *changes]] * 2)
    assert [code for code, _ in ended] == [2, 2]
    found = [error for _, output in ended for error in errors_of(output)]
    assert len(found) == 1, ended
    assert all(word in found[0] for word in words)
    assert "process 1" not in found[0]
    assert "Traceback" not in str(ended)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--data", "nowhere"], ["process 1 on ", "nowhere"]),
        (["--lr", "0.2"], ["lr must be the same", "0.1 in process 0", "0.2 in process 1"]),
        (["--data_seed", "5"], ["content of train, val and init_from must be the same"]),
    ],
)
def test_an_error_of_one_is_printed_once(
    changes: list[str], words: list[str], tmp_path: Path
) -> None:
    """Such as a worker without the data."""
    ended = commands(tmp_path, [*TUNE, "--out", "run"], [*TUNE, "--out", "run", *changes])
    assert [code for code, _ in ended] == [2, 2]
    found = [error for _, output in ended for error in errors_of(output)]
    assert len(found) == 1, ended
    assert all(word in found[0] for word in words)
    assert not (tmp_path / "run" / "config.json").exists()


def test_other_commands_run_in_one_process(tmp_path: Path) -> None:
    ended = commands(tmp_path, *[["doctor"]] * 2)
    assert [code for code, _ in ended] == [2, 2]
    assert errors_of(ended[0][1]) == [
        "error: command: doctor runs in one process, got 2: start it without torchrun"
    ]
    assert ended[1][1] == ""


# ---- torchrun itself ---------------------------------------------------------------------------


def ends_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs end, as if they were interrupted, when they have written so many epochs."""
    finish = RunFolder.append_metrics

    def stopped(run: RunFolder, row: dict[str, Any]) -> None:
        if row["epoch"] > epochs:
            raise KeyboardInterrupt
        finish(run, row)

    monkeypatch.setattr(RunFolder, "append_metrics", stopped)


@contextlib.contextmanager
def torchrun(count: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += ["--standalone", "-m", "fastprompt", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def rank_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return next((v[5:].decode() for v in variables if v.startswith(b"RANK=")), "")
    return ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_torchrun_ends_all_if_one_is_killed_and_three_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [*TUNE, "--clip", "tiny-shapes", "--epochs", "100000", "--out", "run"]
    with torchrun(2, *line) as process:
        while not (tmp_path / "run" / "state.safetensors").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids = {rank_of(int(pid)): int(pid) for pid in children}
        os.kill(pids["1"], signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL) received by PID" in output
    assert f"rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: {pids['1']})" in output
    assert not errors_of(output)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    run, alone = tmp_path / "run", tmp_path / "alone"
    _, metadata = read_tensors(run / "state.safetensors", "state")
    ends_after(int(metadata["epoch"]) + 2, monkeypatch)
    monkeypatch.setattr(bundled, "load", LOAD)
    resume = ["tune", "apt", "--resume", str(run)]
    ended = commands(tmp_path, *[resume] * 3)
    assert ended[0][0] == 130
    assert "interrupted" in ended[0][1]
    assert main([*line[:-1], str(alone)]) == 130
    found, wanted = (read_tensors(f / "state.safetensors", "state") for f in (run, alone))
    assert int(found[1]["epoch"]) == int(wanted[1]["epoch"]) == int(metadata["epoch"]) + 2
    for name, tensor in wanted[0].items():
        assert relative(found[0][name].double(), tensor.double()) < EXACT
    rows, wanted_rows = (RunFolder(f).read_metrics() for f in (run, alone))
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in wanted_rows]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_another_command_waits_for_no_process(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")  # no process listens there
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert ("runs in one process, got 2" in said) == (rank == "0")
    assert main(["tune", "apt", "--help"]) == 0
