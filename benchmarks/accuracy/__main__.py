"""Measures accuracies and errors: of all methods, of AdvPT, of the attacks, of the mathematics.

python -m benchmarks.accuracy methods attempt nap tiny-shapes '{"lr": 0.001}'  # preset search
python -m benchmarks.accuracy methods measure       # tunes and evaluates all missing runs, hours
python -m benchmarks.accuracy methods measure --share 0 --shares 2   # half, in one of two processes
python -m benchmarks.accuracy methods collect       # writes finished runs into the result file
python -m benchmarks.accuracy methods autoattack    # AutoAttack on the first seeds, an hour
python -m benchmarks.accuracy methods table         # writes docs/results.md
python -m benchmarks.accuracy advpt measure         # or table, as for the others
python -m benchmarks.accuracy autoattack measure --eps 4/255 --images 200
python -m benchmarks.accuracy strength measure
python -m benchmarks.accuracy precision measure     # attacks that search in bf16, and in fp32
python -m benchmarks.accuracy caltech measure DATA   # protocols on Caltech101, hours
python -m benchmarks.accuracy golden measure        # errors against the authors' code, a minute
"""

from jsonargparse import CLI

from . import advpt, autoattack, caltech, golden, precision, strength
from .methods import autoattack as methods_autoattack
from .methods.preset_search import attempt
from .methods.results_page import table
from .methods.run import collect, measure

METHODS = {
    "_help": "Comparison of the methods.",
    "attempt": attempt,
    "measure": measure,
    "collect": collect,
    "autoattack": methods_autoattack.autoattack,
    "table": table,
}

if __name__ == "__main__":
    CLI(
        {
            "methods": METHODS,
            "advpt": advpt.main,
            "autoattack": {
                "_help": "AutoAttack of fastprompt and of torchattacks.",
                "measure": autoattack.measure,
                "table": autoattack.show,
            },
            "caltech": {
                "_help": "Two protocols on the whole Caltech101.",
                "measure": caltech.measure,
                "collect": caltech.collect,
                "table": caltech.show,
            },
            "golden": {
                "_help": "Errors against the outputs of the authors' code.",
                "measure": golden.measure,
                "table": golden.show,
            },
            "precision": {
                "_help": "Attacks that search in a low precision, and in the model's own.",
                "measure": precision.measure,
                "table": precision.show,
            },
            "strength": {
                "_help": "PGD, APGD, FAB and Square of fastprompt and of torchattacks.",
                "measure": strength.measure,
                "table": strength.show,
            },
        },
        prog="python -m benchmarks.accuracy",
    )
