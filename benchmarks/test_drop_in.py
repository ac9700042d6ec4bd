"""What the diffs in examples/ bring: a loop with three lines changed, an attack with one."""

from functools import partial

from .drop_in import Attacks, Loops
from .ladder import Group, Spec, ladder, replay
from .sizes import DEVICE


def drop_in(kind: type[Loops] | type[Attacks], batch: int) -> Group:
    """The example as it stands, and with the lines changed."""
    case = kind(batch, DEVICE)
    results = case.results()  # before timing, which moves the contexts apart
    return Group(case.rungs(), results, baseline=case.baseline, size=case.size())


SPECS = [
    Spec("drop-in/coop-loop/b8", partial(drop_in, Loops, 8), ("eager", "fastprompt")),
    Spec("drop-in/coop-loop/b32", partial(drop_in, Loops, 32), ("eager", "fastprompt")),
    Spec("drop-in/pgd-10/b32", partial(drop_in, Attacks, 32), ("torchattacks", "fastprompt")),
]


@ladder(SPECS)
def test_drop_in(benchmark, spec, rung):
    replay(benchmark, spec, rung)
