"""Completion scripts know every command and option; --print_config prints a file for --config."""

import argparse
import shutil
import subprocess
import sys

import pytest
import yaml

from fastprompt.cli import main as entry
from fastprompt.cli.completion import command_tree
from fastprompt.cli.main import main
from fastprompt.cli.tune_parser import tune_parser
from fastprompt.clip import bundled
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.config import read_config


def parsers(tree):
    """The parsers below one, by name."""
    (action,) = [a for a in tree._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def test_the_tree_has_every_command_and_option():
    tree = command_tree(None)
    assert set(parsers(tree)) == set(entry._COMMANDS)
    methods = parsers(parsers(tree)["tune"])
    assert set(methods) == set(TUNERS)
    options = set(methods["nap"]._option_string_actions)
    assert options >= {o for o in tune_parser("nap")._option_string_actions if o != "--print_shtab"}
    known = {action.dest: action.choices for action in methods["nap"]._actions}
    assert known["sanity"] == ("off", "quick", "full")
    assert known["on_error"] == ("raise", "skip")
    assert set(known["optimizer"]) == {"adamw", "sgd"}
    assert known["eps"] is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_scripts(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["--print_completion", shell]) == 0
    script = capsys.readouterr().out
    assert "fastprompt" in script
    assert "--eval_limit" in script
    if shell != "tcsh" and shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fastprompt ev", {"evaluate"}),
        ("fastprompt tune na", {"nap"}),
        ("fastprompt tune apt --sanity q", {"quick"}),
        ("fastprompt evaluate --resu", {"--resume"}),
    ],
)
def test_bash_completes(words, found, capsys, tmp_path):
    pytest.importorskip("shtab")
    assert main(["--print_completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    typed = words.split()
    ask = (
        f"source {tmp_path / 'script'}; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; "
        f"_shtab_fastprompt fastprompt {typed[-1]} {typed[-2]}; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == found, done.stderr


def test_errors_name_the_shells_and_the_extra(monkeypatch, capsys):
    for arguments in ([], ["fish"], ["bash", "zsh"]):
        assert main(["--print_completion", *arguments]) == 2
        assert "bash" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print_completion", "bash"]) == 2
    assert "pip install 'fastprompt[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("method", TUNERS)
def test_the_printed_settings_are_a_file(method, capsys, tmp_path):
    command = ["tune", method, "--lr", "0.5", "--print_config"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["lr"] == 0.5
    file = tmp_path / "settings.yaml"
    file.write_text(printed)
    config = TUNERS[method].Config
    preset = TUNERS[method].presets.get(bundled.DEFAULT, {})
    assert config(**read_config(config, file)) == config(**{**preset, "lr": 0.5})
    # the file gives the same settings again, on any model
    assert main(["tune", method, "--config", str(file), "--clip", "x", "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert main([*command, "--lr=-1"]) == 2


def test_printed_settings_can_be_the_published_ones(capsys):
    assert main(["tune", "nap", "--published", "--print-config"]) == 0
    published = yaml.safe_load(capsys.readouterr().out)
    assert published["epochs"] == TUNERS["nap"].Config.published().epochs
