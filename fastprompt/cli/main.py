"""The ``fastprompt`` command: tune, evaluate, protocol, report, import, export, data, doctor."""

import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from .._utils.names import unknown
from .._utils.printable import printable_output
from .._utils.progress import tell

_COMMANDS = ("tune", "evaluate", "protocol", "report", "import", "export", "data", "doctor")
_USAGE = """usage: fastprompt COMMAND [options]

commands:
  tune METHOD        tune prompts, then compare zero-shot and tuned accuracy
  evaluate RUN       evaluate a run's prompts under attack and check the result
  protocol NAME      tune and evaluate methods over data sets, shots and seeds; write tables
  report RUN...      write the results of runs as an HTML page, CSV, Markdown and LaTeX
  import CHECKPOINT  convert a checkpoint of CoOp, AdvPT, APT, MaPLe, FAP or NAP
  export RUN         write a tuned classifier as an ONNX file, a torch program or class features
  data check ROOT    list which data sets of CoOp are in a folder, and what is missing
  doctor             print versions, devices and kernels; check the bundled models

fastprompt COMMAND --help lists the options of a command, fastprompt --version the version"""


def _call(command: str, arguments: Sequence[str]) -> int:
    if command in _COMMANDS and not {"-h", "--help"} & {*arguments} and "torch" not in sys.modules:
        tell("loading torch and open_clip")
    # imported lazily: the libraries of a command take seconds to import
    if command == "tune":
        from .tune import tune

        return tune(arguments)
    if command == "evaluate":
        from .evaluate import evaluate_run

        return evaluate_run(arguments)
    if command == "protocol":
        from .protocol import protocol

        return protocol(arguments)
    if command == "report":
        from .report import report

        return report(arguments)
    if command == "import":
        from .import_ import import_checkpoint

        return import_checkpoint(arguments)
    if command == "export":
        from .export_ import export_run

        return export_run(arguments)
    if command == "data":
        from .data import data

        return data(arguments)
    if command == "doctor":
        from .doctor import doctor

        return doctor(arguments)
    raise unknown("command", command, _COMMANDS)


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
        return _call(arguments[0], arguments[1:])
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
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
