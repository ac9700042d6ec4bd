"""Equality check, interleaved timing, and FLOP counts of implementations."""

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

# largest allowed norm-relative differences
TOLERANCE = 1e-4  # in float32
EXACT = 1e-10  # in float64


class RungsDifferError(RuntimeError):
    """The compared implementations do not compute the same result."""


def difference(a: Tensor, b: Tensor) -> float:
    """``||a - b|| / ||b||``, in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def gate(
    results: Mapping[str, Mapping[str, Tensor]],
    baseline: str = "eager",
    limit: float | Mapping[str, float] = TOLERANCE,
) -> dict[str, dict[str, float]]:
    """Return the norm-relative differences from the baseline, by implementation and name.

    Args:
        results: for each implementation, outputs and gradients by name.
        limit: largest allowed difference, by default for float32; or one for each implementation.

    Raises:
        RungsDifferError: a difference exceeds its limit or is NaN (as with a baseline of zero,
            which proves nothing), or names or shapes differ.
    """
    wanted = results[baseline]
    found: dict[str, dict[str, float]] = {}
    wrong = []
    for rung, tensors in results.items():
        if rung == baseline:
            continue
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        if shapes != {name: tuple(t.shape) for name, t in wanted.items()}:
            raise RungsDifferError(
                f"{rung} and {baseline} have different names or shapes: {shapes}"
            )
        found[rung] = {name: difference(t, wanted[name]) for name, t in tensors.items()}
        # not "d > most", which is False for NaN
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
    """Seconds of one implementation, one entry per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile over the rounds."""
        return quartiles(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for a result file."""
        lower, upper = self.quartiles
        return {"median": self.median, "lower": lower, "upper": upper, "rounds": len(self.seconds)}


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """Return the lower and the upper quartile; a single value is both."""
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
    """Time all implementations interleaved, so that other load on the machine affects all equally.

    Args:
        warmup: untimed rounds before the others.
        clock: returns seconds.
        once: slow implementations, which run and are timed in the first round only.
        take: returns the seconds of an implementation by name, if they are not the difference of
            two readings of the clock; see `gpu_timing.event_turns`.
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
        # rotate the order, so that no implementation always follows the same other one
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if i and name in once:
                continue
            taken = take(name)
            if i >= warmup or name in once:
                seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> dict[str, float]:
    """Return ``slow``'s time over ``fast``'s: of the medians, and least and most over the rounds.

    If one of them ran in the first round only, it is compared with every round of the other.
    """
    a, b = timings[slow].seconds, timings[fast].seconds
    alone = 1 in (len(a), len(b))
    pairs = product(a, b) if alone else zip(a, b, strict=True)
    rounds = [x / y for x, y in pairs]
    medians = timings[slow].median / timings[fast].median
    return {"medians": medians, "least": min(rounds), "most": max(rounds)}


class _FlopCount(TorchDispatchMode):
    """Counts by torch's formulas without its module hooks, which fail under `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        plain, composite, formula = _of(func)
        if plain is not None and not any(isinstance(x, FakeTensor) for x in args):
            with self:  # count the operations inside
                return plain(*args, **kwargs)
        # plain implementations run below autograd, where composite torch ops are not decomposed
        if composite:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if formula:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


@functools.cache
def _of(func: Any) -> tuple[Callable[..., Any] | None, bool, Callable[..., int] | None]:
    """Return an operator's plain implementation, whether it is composite, and its FLOP formula.

    An in-place operator has the formula of its out-of-place version.
    """
    packet = func._overloadpacket
    same = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), packet)
    composite = func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    formula = flop_registry.get(packet) or flop_registry.get(same)
    return PLAIN.get(func._schema.name), composite, formula


def count_flops(function: Callable[[], object]) -> int:
    """Count the FLOPs of the matrix products and convolutions in ``function``.

    Attention counts as its plain matrix products in every implementation: the fused kernel's
    backward recomputes some of them, which is not useful work. fastprompt's ops count by their
    plain implementations; on tensors without values, which these cannot read, they are not counted
    (in a step that is the attention over the shared prefix: well below 1 %).
    """
    with sdpa_kernel(SDPBackend.MATH), _FlopCount() as count:
        function()
    return count.total


def count_without_values(function: Callable[[], object]) -> int:
    """Count FLOPs as `count_flops` does, on tensors without values; nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count_flops(function)
