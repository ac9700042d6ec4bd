"""What the diff in examples/ brings to a loop; that of an attack alone is in peers/."""

from functools import partial

from ..common.clips import DTYPES
from ..common.sizes import DEVICE, ON_GPU
from .drop_in import Loops
from .group import Group, Spec, ladder, replay


def drop_in(batch: int) -> Group:
    """The example as it stands, and with the lines changed."""
    case = Loops(batch, DEVICE)
    results = case.results()  # before timing, which moves the contexts apart
    return Group(
        case.rungs(),
        results,
        rounds=3,
        baseline=case.baseline,
        dtypes=DTYPES,
        flops=(lambda _: 0) if ON_GPU else None,  # not seen in compiled code, nor in a graph
        size=case.size(),
    )


SPECS = [
    Spec("drop-in/coop-loop/b8", partial(drop_in, 8), ("eager", "fastprompt")),
    Spec("drop-in/coop-loop/b32", partial(drop_in, 32), ("eager", "fastprompt")),
]


@ladder(SPECS)
def test_drop_in(benchmark, spec, rung):
    replay(benchmark, spec, rung)
