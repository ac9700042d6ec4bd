"""What the diff in examples/ brings to a loop; that of an attack alone is in peers/."""

from functools import partial

from .clips import DTYPES
from .drop_in import Loops
from .ladder import Group, Spec, ladder, replay
from .sizes import DEVICE, ON_GPU


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
