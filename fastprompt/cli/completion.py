"""``fastprompt --print_completion SHELL``: a script that completes commands and options."""

import argparse
from typing import Any, Literal, get_args, get_origin

from .._utils.names import unknown
from ..methods.registry import TUNERS
from .data import check_parser
from .evaluate import evaluate_parser
from .export_ import export_parser
from .import_ import import_parser
from .parser import Parser
from .predict import predict_parser
from .protocol import protocol_parser
from .push import push_parser
from .report import report_parser
from .tune_parser import tune_parser

SHELLS = ("bash", "zsh", "tcsh")


def completion(shell: str) -> str:
    """Return the script for a shell.

    Raises:
        ValueError: the shell is not supported.
        RuntimeError: shtab is not installed.
    """
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    try:
        import shtab
    except ImportError as error:
        raise RuntimeError(
            f"--print_completion needs shtab ({error}): pip install 'fastprompt[completion]'"
        ) from error
    script: str = shtab.complete(command_tree(shtab.FILE), shell=shell)
    return script


def command_tree(files: Any) -> argparse.ArgumentParser:
    """Return the commands and options as argparse's own parsers; values complete as ``files``."""
    root = argparse.ArgumentParser(prog="fastprompt")
    commands = root.add_subparsers()  # shtab leaves out the parsers that have no help

    def added(to: Any, name: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = to.add_parser(name, help=name)
        return parser

    simple = {
        "evaluate": evaluate_parser,
        "predict": predict_parser,
        "protocol": protocol_parser,
        "report": report_parser,
        "push": push_parser,
        "import": import_parser,
        "export": export_parser,
    }
    for name, build in simple.items():
        _copy(build(), added(commands, name), files)
    methods = added(commands, "tune").add_subparsers()
    for method in TUNERS:
        _copy(tune_parser(method), added(methods, method), files)
    data = added(commands, "data").add_subparsers()
    _copy(check_parser(), added(data, "check"), files)
    added(commands, "doctor")
    return root


def _copy(source: Parser, target: argparse.ArgumentParser, files: Any) -> None:
    """Add the options of a parser to one of argparse, whose types shtab understands."""
    for action in source._actions:
        if action.dest == "help" or action.help is argparse.SUPPRESS:
            continue
        options = action.option_strings or [action.dest]
        text = (action.help or "").replace("%", "%%")
        if action.nargs == 0:
            target.add_argument(*options, action="store_true", help=text)
            continue
        choices = _choices(getattr(action, "_typehint", action.type))
        copy = target.add_argument(*options, nargs=action.nargs, choices=choices, help=text)
        if choices is None:
            copy.complete = files  # type: ignore[attr-defined]


def _choices(kind: Any) -> tuple[Any, ...] | None:
    """Return the values of a Literal, also in a union; None for any other type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if kind is bool:
        return ("true", "false")
    return next((found for part in get_args(kind) if (found := _choices(part))), None)
