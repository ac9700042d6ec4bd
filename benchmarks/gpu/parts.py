"""What `quick.sh` runs, in which order, and how long each part may take.

Imports nothing but the standard library: the plan is checked and printed before anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

WHOLE = 900  # seconds for which a machine is had, with its start, transfers and idling
MOST_FILES = 8  # that a run writes


@dataclass(frozen=True)
class Part:
    """Tasks that one process runs one after another.

    Attributes:
        name: of the part.
        seconds: after which it is stopped. A part may also use what earlier ones left.
        tasks: their names; `tasks.SHORT` has their arguments.
        beside: runs at the same time as the part before it.
    """

    name: str
    seconds: int
    tasks: tuple[str, ...]
    beside: bool = False


@dataclass(frozen=True)
class Call:
    """Parts that one run of the script goes through, the most valuable first.

    Attributes:
        budget: seconds of the whole call.
        before: seconds for the checks and the installation of wheels.
        after: seconds in which caches are packed; 0 if they are not.
        left: least seconds that must be left of the machine's time.
    """

    budget: int
    before: int
    parts: tuple[Part, ...]
    after: int = 0
    left: int = 0

    @property
    def seconds(self) -> int:
        """Sum of all limits; parts that run at the same time count once."""
        return self.before + sum(p.seconds for p in self.parts if not p.beside) + self.after

    def ends(self) -> dict[str, int]:
        """Return the second of the call at which each part is stopped."""
        out, at = {}, self.before
        for part in self.parts:
            at += 0 if part.beside else part.seconds
            out[part.name] = at
        return out


FIRST = Call(
    budget=540,
    before=45,  # torch is imported for the first time
    parts=(
        Part("hardware", 15, ("hardware",)),
        Part("smoke", 25, ("smoke",)),
        Part("tests", 150, ("tests-kernels",)),
        Part("compile", 150, ("compile",), beside=True),
        Part("step", 100, ("step",)),
        Part("attack", 80, ("attack",)),
        Part("kernels", 90, ("pgd-step", "attention", "mixture")),
    ),
    after=30,
)
SECOND = Call(
    budget=120,
    before=5,
    parts=(
        Part("more-tests", 70, ("tests",)),
        Part("agreement", 70, ("agreement",), beside=True),
        Part("text", 45, ("text-1000",)),
    ),
    left=200,
)


# in a dry run also the tasks that a short time does not suffice for
REST = Part("rest", 0, ("consistency", "text-21000", "sanitizer"))


def everything() -> Call:
    """Return the parts of both calls and the other tasks, for a dry run."""
    return replace(FIRST, parts=(*FIRST.parts, *SECOND.parts, REST))


def chosen(call: Call, only: Sequence[str]) -> Call:
    """Return the call with some of its parts; those that ran beside others then run alone."""
    parts = tuple(replace(p, beside=False) for p in call.parts if p.name in only)
    return replace(call, parts=parts)


def arithmetic(call: Call) -> str:
    """Return a table of the limits, and what is left of the machine's time."""
    ends = call.ends()
    rows = [("checks and wheels", call.before, call.before)]
    rows += [
        (p.name + (" (beside)" if p.beside else ""), p.seconds, ends[p.name]) for p in call.parts
    ]
    rows += [("pack the caches", call.after, call.seconds)] if call.after else []
    lines = [f"{name:<20}{seconds:>5} s, ends at {end:>4} s" for name, seconds, end in rows]
    both = FIRST.budget + SECOND.budget
    return "\n".join(
        [
            *lines,
            f"sum of limits {call.seconds} s, budget of this call {call.budget} s",
            f"both calls {FIRST.budget} + {SECOND.budget} = {both} s of {WHOLE} s: "
            f"{WHOLE - both} s are left for the machine's start, transfers and idling",
        ]
    )
