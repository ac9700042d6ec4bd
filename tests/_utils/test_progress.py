"""How far a long piece of work is, where nobody looks at a terminal."""

import time

from fastprompt._utils import progress
from fastprompt._utils.progress import Progress


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with Progress(400, "tune nap", "batch", initial=50) as bar:
        bar.update(50)
        bar.note("epoch 2 of 8: loss=0.500")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert lines[-1] == "tune nap: 100 of 400 batch, 0:00; epoch 2 of 8: loss=0.500"
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_short_work_and_unwanted_lines_are_silent(monkeypatch, capsys):
    with Progress(4, "evaluate", "img") as bar:
        bar.update(4)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with Progress(4, "evaluate", "img", show=False) as bar:
        time.sleep(0.1)
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_passes_are_noted_now_and_then(monkeypatch):
    notes = []
    monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
    with Progress(4, "train bank", "img", show=False) as bar:
        bar.passes("attack", 1000, 8000)
        bar.passes("attack", 1100, 8000)  # too soon
        monkeypatch.setattr(progress, "_OFTEN", 0.0)
        bar.passes("pgd-20", 1200)
    assert notes == ["attack, 1,000 of 8,000 passes", "pgd-20, 1,200 passes"]


def test_workers_are_shown_with_the_rate_and_the_time_left():
    bar = Progress(100, "evaluate", "img", initial=10, show=False)
    assert bar.line() == "evaluate: 10 of 100 img, 0:00"
    bar.workers(2)
    bar.note("pgd-20")
    bar.update(30)
    bar._began -= 10
    assert bar.line() == "evaluate: 40 of 100 img, 0:10; 2 workers, 3.0 img/s, 0:20 left; pgd-20"
    bar.workers(1)
    assert "1 worker, " in bar.line()
