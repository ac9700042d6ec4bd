"""Rungs timed by turns, behind a gate that they agree; their FLOPs counted."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastprompt.kernels._dispatch import PLAIN

# of differences, norm-relative
TOLERANCE = 1e-4  # in float32
EXACT = 1e-10  # in float64


class RungsDifferError(RuntimeError):
    """Rungs that are to be compared don't compute the same."""


def difference(a: Tensor, b: Tensor) -> float:
    """``||a - b|| / ||b||``, in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def gate(
    results: Mapping[str, Mapping[str, Tensor]],
    baseline: str = "eager",
    limit: float | Mapping[str, float] = TOLERANCE,
) -> dict[str, dict[str, float]]:
    """How far each rung's tensors are from the baseline's, norm-relative, by rung and name.

    Args:
        results: by rung, outputs and gradients by name.
        limit: of every difference, for float32; or of each rung's.

    Raises:
        RungsDifferError: a difference is above the limit, or not a number (as where the baseline
            is zero, which proves nothing), or names or shapes differ.
    """
    wanted = results[baseline]
    found: dict[str, dict[str, float]] = {}
    wrong = []
    for rung, tensors in results.items():
        if rung == baseline:
            continue
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        if shapes != {name: tuple(t.shape) for name, t in wanted.items()}:
            raise RungsDifferError(f"{rung} and {baseline} give other names or shapes: {shapes}")
        found[rung] = {name: difference(t, wanted[name]) for name, t in tensors.items()}
        # not "> limit", which a NaN would pass
        most = limit[rung] if isinstance(limit, Mapping) else limit
        wrong += [
            f"{rung}: {n} by {d:.2e}, above {most:g}"
            for n, d in found[rung].items()
            if not d <= most
        ]
    if wrong:
        raise RungsDifferError(f"differs from {baseline}: {wrong}")
    return found


@dataclass(frozen=True)
class Timing:
    """Seconds of one rung, a round each."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the rounds took longer."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one."""
        return quartiles(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """For a result file."""
        lower, upper = self.quartiles
        return {"median": self.median, "lower": lower, "upper": upper, "rounds": len(self.seconds)}


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """The lower and the upper quartile; of one value, itself."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def by_turns(
    rungs: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    once: Collection[str] = (),
    take: Callable[[str], float] | None = None,
) -> dict[str, Timing]:
    """Every rung once a round, so that what else the machine does meets all of them alike.

    Args:
        warmup: rounds in front that don't count.
        once: rungs so long that they take part in the first round alone.
        clock: seconds.
        take: seconds of a rung, by name, where it is more than a call between two looks at the
            clock: see `gpu_timing.event_turns`.
    """

    def called(name: str) -> float:
        began = clock()
        rungs[name]()
        return clock() - began

    take = take or called
    names = list(rungs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for i in range(warmup + rounds):
        # another one goes first each time: none always comes behind the same other
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if i and name in once:
                continue
            taken = take(name)
            if i >= warmup or name in once:
                seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> dict[str, float]:
    """How many times longer ``slow`` takes: of the medians; least and most over the rounds.

    One that took part in the first round alone is compared with every round of the other.
    """
    a, b = timings[slow].seconds, timings[fast].seconds
    alone = 1 in (len(a), len(b))
    pairs = product(a, b) if alone else zip(a, b, strict=True)
    rounds = [x / y for x, y in pairs]
    medians = timings[slow].median / timings[fast].median
    return {"medians": medians, "least": min(rounds), "most": max(rounds)}


class _FlopCount(TorchDispatchMode):
    """torch's own formulas, without its counter's module hooks, which `autograd.grad` trips."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        plain, composite, formula = _of(func)
        if plain is not None and not any(isinstance(x, FakeTensor) for x in args):
            with self:  # what the op does inside
                return plain(*args, **kwargs)
        # below autograd, as an op's plain code is, torch's own ops come undecomposed
        if composite:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if formula:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


@functools.cache
def _of(func: Any) -> tuple[Callable[..., Any] | None, bool, Callable[..., int] | None]:
    """Of an operator: our plain code, whether it is made of others, and its FLOPs.

    One in place has the FLOPs of the one it is called after.
    """
    packet = func._overloadpacket
    same = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), packet)
    composite = func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    formula = flop_registry.get(packet) or flop_registry.get(same)
    return PLAIN.get(func._schema.name), composite, formula


def count_flops(function: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions that ``function`` does.

    Attention counts as its plain products in every rung: the fused kernel's backward computes some
    of them twice, which is no use to anybody. fastprompt's own ops count by their plain code; on
    tensors without values, which it can't read, not at all (in a step that is their attention over
    a shared prefix: well below 1 %).
    """
    with sdpa_kernel(SDPBackend.MATH), _FlopCount() as count:
        function()
    return count.total


def count_without_values(function: Callable[[], object]) -> int:
    """The same on tensors without values: nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count_flops(function)
