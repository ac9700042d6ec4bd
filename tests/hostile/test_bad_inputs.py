"""Invalid input gets a message that names the argument, early, and leaves no file behind."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers.made_up import full_run
from hostile.bad_inputs import (
    attacks,
    command_line,
    data,
    evaluation,
    kernels,
    models,
    predictions,
    settings,
)
from hostile.bad_inputs.rows import Row, World

from fastprompt import APTTuner, FrozenCLIP
from fastprompt.cli import tune
from fastprompt.cli.main import main
from fastprompt.data import ImageTensors

TABLES = (attacks, evaluation, predictions, settings, models, data, kernels, command_line)
ROWS = [row for table in TABLES for row in table.ROWS]
# what the documentation names; not their subclasses, such as UnicodeError, which no one raises on
# purpose
ERRORS = (ValueError, TypeError, OSError, FileNotFoundError, FileExistsError, NotADirectoryError)
PARSER = cache(tune.tune_parser)  # half of the time of a row of the command line
FOLDERS: list[Path] = []
LONGEST = 1000  # characters of a message


@pytest.fixture(scope="module")
def world(small_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> World:
    runs = tmp_path_factory.mktemp("runs")
    full_run(runs / "nap")
    job = {**tune._defaults(tune.tune_parser("apt")), "data": "shapes", "shots": 1}
    tuner = APTTuner(small_clip, ["cat", "dog", "fox"], n_ctx=1, epochs=1)
    tuner.save(runs / "tuned", job={"job": job, "threads": 1})
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2])
    pictures = ImageTensors((images * 255).to(torch.uint8), labels)
    return World(small_clip, images, labels, pictures, tmp_path_factory.mktemp("rows"), runs)


@pytest.fixture
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, which all rows share as long as none writes into it."""
    if not FOLDERS or any(FOLDERS[-1].iterdir()):
        FOLDERS.append(tmp_path_factory.mktemp("empty"))
    return FOLDERS[-1]


def files(folder: Path) -> dict[Path, int]:
    """All files in a folder but the empty ones of locks, and when they were changed."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in found}


def message_of(row: Row, world: World, capsys: pytest.CaptureFixture[str]) -> str:
    if not row.command_line:
        with pytest.raises(Exception) as caught:  # noqa: PT011  (the type is checked below)
            row.call(world)  # type: ignore[operator]
        assert type(caught.value) in ERRORS, f"{caught.type.__name__}: {caught.value}"
        return str(caught.value)
    arguments = row.call(world) if callable(row.call) else row.call
    before = files(world.place)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert files(world.place) == before
    assert "Traceback" not in err
    if "usage" in row.words:
        return out
    lines = [text for text in err.splitlines() if text.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.id for row in ROWS])
def test_bad_input_is_refused(
    number: int,
    world: World,
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = ROWS[number]
    monkeypatch.chdir(empty)
    monkeypatch.setattr(tune, "tune_parser", PARSER)
    message = message_of(row, replace(world, place=world.place / str(number)), capsys)
    assert not [word for word in row.words if word not in message], message
    assert 0 < len(message) < LONGEST
    assert "weights_only" not in message  # torch's advice to run the pickled code
    assert not os.listdir()  # nothing was written


def test_there_are_hundreds_of_rows_with_distinct_names() -> None:
    names = [row.id for row in ROWS]
    assert len(set(names)) == len(names) >= 400
