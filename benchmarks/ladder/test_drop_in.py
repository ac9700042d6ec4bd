"""Speed-up of the tuning loop with the diff of examples/; that of the attack is in peers/."""

from functools import partial

from ..common.clips import low_dtypes
from ..common.sizes import DEVICE, ON_GPU
from .drop_in import Loops
from .group import Group, Spec, ladder, replay


def drop_in(batch: int) -> Group:
    """Build the group of the example and of its version with the changed lines."""
    case = Loops(batch, DEVICE)
    results = case.results()  # before timing, which updates the contexts
    return Group(
        case.rungs(),
        results,
        rounds=3,
        baseline=case.baseline,
        dtypes=low_dtypes(),
        flops=(lambda _: 0) if ON_GPU else None,  # not visible in compiled code, nor in a graph
        size=case.size(),
    )


SPECS = [
    Spec("drop-in/coop-loop/b8", partial(drop_in, 8), ("eager", "fastprompt")),
    Spec("drop-in/coop-loop/b32", partial(drop_in, 32), ("eager", "fastprompt")),
]


@ladder(SPECS)
def test_drop_in(benchmark, spec, rung):
    replay(benchmark, spec, rung)
