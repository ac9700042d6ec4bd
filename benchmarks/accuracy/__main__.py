"""Accuracies: the methods against each other, AdvPT's own, the attacks beside torchattacks'.

python -m benchmarks.accuracy methods attempt nap tiny-shapes '{"lr": 0.001}'  # of the search
python -m benchmarks.accuracy methods measure       # tunes and judges what is not done yet, hours
python -m benchmarks.accuracy methods measure --share 0 --shares 2   # half, beside another process
python -m benchmarks.accuracy methods collect       # what is done into the result file
python -m benchmarks.accuracy methods autoattack    # the first seeds under AutoAttack, an hour
python -m benchmarks.accuracy methods table         # docs/results.md and the README's table
python -m benchmarks.accuracy advpt measure         # or table; so for the others
python -m benchmarks.accuracy autoattack measure --eps 4/255 --images 200
python -m benchmarks.accuracy strength measure
"""

from jsonargparse import CLI

from . import advpt, autoattack, strength
from .methods import autoattack as methods_autoattack
from .methods.preset_search import attempt
from .methods.results_page import table
from .methods.run import collect, measure

METHODS = {
    "_help": "The methods against each other.",
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
                "_help": "AutoAttack here and in torchattacks.",
                "measure": autoattack.measure,
                "table": autoattack.show,
            },
            "strength": {
                "_help": "PGD and APGD here and in torchattacks.",
                "measure": strength.measure,
                "table": strength.show,
            },
        }
    )
