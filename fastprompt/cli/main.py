"""The ``fastprompt`` command: tune, evaluate, predict, protocol, report, push and others."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from .._utils.names import unknown
from .._utils.printable import printable_output
from .._utils.progress import tell

_COMMANDS = {  # the module and the function of each
    "tune": ("tune", "tune"),
    "evaluate": ("evaluate", "evaluate_run"),
    "predict": ("predict", "predict_pictures"),
    "protocol": ("protocol", "protocol"),
    "report": ("report", "report"),
    "push": ("push", "push"),
    "import": ("import_", "import_checkpoint"),
    "export": ("export_", "export_run"),
    "data": ("data", "data"),
    "doctor": ("doctor", "doctor"),
}
_USAGE = """usage: fastprompt COMMAND [options]

commands:
  tune METHOD        tune prompts, then compare zero-shot and tuned accuracy
  evaluate RUN       evaluate a run's prompts under attack and check the result
  predict RUN PATH   predict the classes of pictures
  protocol NAME      compare methods over data sets, shots and seeds in tables
  report RUN...      write the results of runs as an HTML page, CSV, Markdown and LaTeX
  push RUN ORG/NAME  upload a run's prompts to the Hugging Face Hub
  import CHECKPOINT  convert a checkpoint of CoOp, AdvPT, APT, MaPLe, FAP or NAP
  export RUN         write a run as an ONNX file, a torch program or class features
  data check ROOT    list CoOp's data sets in a folder, and what is missing
  doctor             print versions, devices and kernels; check the bundled models

fastprompt COMMAND --help lists the options of a command, fastprompt --version the version;
fastprompt --print_completion bash (or zsh, tcsh) prints a script that completes options"""


def _call(command: str, arguments: Sequence[str]) -> int:
    if command not in _COMMANDS:
        raise unknown("command", command, _COMMANDS)
    if not {"-h", "--help"} & {*arguments} and "torch" not in sys.modules:
        tell("loading torch and open_clip")
    module, function = _COMMANDS[command]
    # imported lazily: the libraries of a command take seconds to import
    run = getattr(importlib.import_module(f".{module}", __package__), function)
    return int(run(arguments))


def _completion(shells: Sequence[str]) -> int:
    if len(shells) != 1:
        raise ValueError("shell must be given: --print_completion bash, zsh or tcsh")
    from .completion import completion

    print(completion(shells[0]))
    return 0


def _launched_together() -> bool:
    """Return whether torchrun, or a launcher that sets its variables, started several processes."""
    count = os.environ.get("WORLD_SIZE", "1")
    return count.isdecimal() and int(count) > 1 and "RANK" in os.environ


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    with printable_output():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"fastprompt {__version__}")
        return 0
    try:
        if arguments[0] == "--print_completion":
            return _completion(arguments[1:])
        if not _launched_together() or {"-h", "--help"} & {*arguments}:
            return _call(arguments[0], arguments[1:])
        from .processes import run_together

        return run_together(arguments[0], lambda: _call(arguments[0], arguments[1:]))
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        for note in getattr(error, "__notes__", ()):  # such as the traceback of a worker
            print(note, file=sys.stderr)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as done:  # argparse exits so after --help and after errors
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("interrupted; to resume, pass --resume and the run folder", file=sys.stderr)
        return 130
    except Exception:  # a bug; Python itself would print it past `printable_output`
        traceback.print_exc()
        return 1
