"""Names and messages of unknown origin can't steer a terminal."""

import io
import logging
import sys

import pytest

from fastprompt._utils.printable import printable, printable_output
from fastprompt._utils.progress import Progress
from fastprompt.cli import main as command
from fastprompt.evaluation import Evaluation

HOSTILE = "cat\x1b[2J\x9b31m\x07\u202etac\u2066\r\n! fake\x7f\udcff"
SHOWN = r"cat\x1b[2J\x9b31m\x07\u202etac\u2066\r\n! fake\x7f\udcff"


def test_control_characters_become_escapes_and_other_text_stays():
    assert printable(HOSTILE) == SHOWN
    assert printable("a\nb\tc\r", keep="\n\t") == "a\nb\tc\\r"
    for text in ("", "naïve ε ≤ 4/255", "日本語 עברית", "👩‍🔬"):
        assert printable(text) == text


def test_streams_escape_what_is_printed_and_stay_streams(capsys):
    before = sys.stdout, sys.stderr
    with printable_output():
        assert not sys.stdout.isatty()
        print("one", HOSTILE)
        print(HOSTILE, file=sys.stderr, flush=True)
        logging.lastResort.handle(logging.makeLogRecord({"msg": HOSTILE, "levelno": 30}))
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    kept = SHOWN.replace(r"\n", "\n")
    assert out == f"one {kept}\n"
    assert err == f"{kept}\n{kept}\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_still_returns_to_its_line_but_its_note_is_escaped(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with printable_output(), Progress(4, "evaluate", "img") as bar:
        bar.note(f"{HOSTILE}: clean")
        bar.update(4)
        assert f"{SHOWN}: clean" in bar.line()
    shown = terminal.getvalue()
    assert shown.startswith("\revaluate:")
    assert SHOWN in shown
    assert not set("\x1b\x9b\x07\u202e\u2066\x7f") & set(shown)
    assert "\\r" not in shown.replace(SHOWN, "")


def test_tables_and_reasons_stay_on_their_lines():
    facts = {"model": HOSTILE, "attack": "clean", "path": "none", "eps": 0.0, "interval": (0, 1)}
    row = {**facts, "accuracy": 0.5, "trusted": False, "reasons": [f"no {HOSTILE}"]}
    table = Evaluation([row]).table()
    assert len(table.splitlines()) == 4
    assert SHOWN in table.splitlines()[0]
    assert f"! not to be trusted: {SHOWN}, clean: no {SHOWN}" == table.splitlines()[3]


@pytest.mark.parametrize(("error", "code"), [(ValueError, 2), (KeyError, 1)])
def test_the_message_of_any_exception_is_escaped(error, code, monkeypatch, capsys):
    def fail(*_):
        raise error(f"from elsewhere: {HOSTILE}")

    monkeypatch.setattr(command, "_call", fail)
    assert command.main(["tune"]) == code
    err = capsys.readouterr().err
    assert r"cat\x1b[2J" in err
    assert not set("\x1b\x9b\x07\u202e\u2066\x7f\udcff") & set(err)
    assert error is KeyError or err.count("\n") == 1
