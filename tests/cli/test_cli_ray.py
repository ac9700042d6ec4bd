"""--ray on the command line: what is refused, each with one message."""

import socket
import sys
from importlib.util import find_spec

import pytest
from helpers.models import small_model

from fastprompt import APTTuner, load_clip
from fastprompt.cli.main import main

RAY = pytest.mark.skipif(not find_spec("ray"), reason="needs Ray, which the extra ray brings")
COMMANDS = {
    "evaluate": ["evaluate", "--clip", "tiny-shapes", "--data", "shapes", "--out", "out"],
    "predict": ["predict", "run", "a.png"],
    "protocol": ["protocol", "few-shot", "--data", "shapes", "--out", "out"],
    "tune": ["tune", "advpt", "--out", "out"],
}


def refused(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert not [*tmp_path.iterdir()]
    return message


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_without_a_port(command, capsys, tmp_path, monkeypatch):
    line = [*COMMANDS[command], "--ray", "nonsense"]
    message = refused(line, capsys, tmp_path, monkeypatch)
    assert message.startswith("error: --ray: address must be HOST:PORT of a Ray cluster or 'auto'")


@pytest.fixture
def run(tmp_path_factory):
    """A run folder, with a picture."""
    folder = APTTuner(load_clip(small_model()), ["cat", "dog"], n_ctx=1).save(
        tmp_path_factory.mktemp("tuned") / "run"
    )
    (folder / "a.png").touch()
    return folder


@RAY
@pytest.mark.parametrize("command", COMMANDS)
def test_a_cluster_that_does_not_answer(command, run, capsys, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["predict", str(run), str(run)] if command == "predict" else COMMANDS[command]
    line = [*command, f"--ray=127.0.0.1:{port}"]
    message = refused(line, capsys, tmp_path, monkeypatch)
    assert f"the Ray cluster at 127.0.0.1:{port} cannot be reached" in message


def test_methods_without_a_bank_have_no_such_option(capsys, tmp_path, monkeypatch):
    message = refused(["tune", "apt", "--ray"], capsys, tmp_path, monkeypatch)
    assert message.startswith("error: unknown option --ray")


def test_without_ray(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused([*COMMANDS["evaluate"], "--ray"], capsys, tmp_path, monkeypatch)
    assert "pip install 'fastprompt[ray]'" in message


def test_the_traceback_of_a_worker_stands_before_the_message(monkeypatch, capsys):
    def fails(*_):
        error = RuntimeError("ray: a worker failed")
        error.add_note("Traceback of the worker:\n  line 1")
        raise error

    monkeypatch.setattr("fastprompt.cli.main._call", fails)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["Traceback of the worker:", "  line 1", "error: ray: a worker failed"]
