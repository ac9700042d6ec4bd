"""Run, collect and show the comparison of the methods.

python -m benchmarks.methods attempt nap tiny-shapes '{"lr": 0.001}'   # one of the search
python -m benchmarks.methods measure            # tunes and judges what is not done yet, hours
python -m benchmarks.methods measure --share 0 --shares 2   # half of it, beside a second process
python -m benchmarks.methods collect            # what is done into the result file
python -m benchmarks.methods autoattack         # the first seeds under AutoAttack, an hour
python -m benchmarks.methods table              # docs/results.md and the README's table
"""

from jsonargparse import CLI

from .run import collect, measure
from .strong import autoattack
from .sweep import attempt
from .table import table

if __name__ == "__main__":
    CLI(
        {
            "attempt": attempt,
            "measure": measure,
            "collect": collect,
            "autoattack": autoattack,
            "table": table,
        }
    )
