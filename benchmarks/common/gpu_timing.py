"""GPU timing with CUDA events that hides launch overhead, peak memory, and hardware limits."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import DeviceType

from .timing import Timing, by_turns

DEVICE = "cuda"
ROUNDS, BACKLOG = 9, 30
Rungs = Mapping[str, Callable[[], Any]]


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the bytes that one call allocates at its peak, above those allocated before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def busy_share(function: Callable[[], object]) -> float:
    """Return the share of the time between first and last kernel in which a kernel runs."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        function()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in record.events()
        if event.device_type == DeviceType.CUDA
    )
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - spans[0][0])


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions (torch's default mixes them)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def under_tf32(allowed: bool, run: Callable[[], object]) -> Callable[[], object]:
    """Wrap ``run`` so that it runs with TF32 allowed or forbidden."""

    def inside() -> object:
        with tf32(allowed):
            return run()

    return inside


def event_turns(
    rungs: Rungs,
    rounds: int = ROUNDS,
    warmup: int = 5,
    backlog: int | None = None,
    once: Collection[str] = (),
) -> dict[str, Timing]:
    """Time interleaved calls in seconds per call, with CUDA events around queued calls.

    Args:
        backlog: calls per measurement; by default as many as take about 100 ms.
        once: see `timing.by_turns`.
    """
    for function in rungs.values():
        for _ in range(warmup):
            function()
    calls = {name: backlog or _calls(function) for name, function in rungs.items()}

    def take(name: str) -> float:
        return _backlog(rungs[name], calls[name])

    return by_turns(rungs, rounds, warmup=0, once=once, take=take)


def _backlog(function: Callable[[], object], calls: int) -> float:
    """Return the seconds per call, averaged over ``calls`` queued calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # in clock cycles, about 50 ms: the device is busy while the host fills the queue
    torch.cuda._sleep(100_000_000)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _calls(function: Callable[[], object], seconds: float = 0.1) -> int:
    return max(1, min(BACKLOG, round(seconds / _backlog(function, 1))))


def event_rounds(rungs: Rungs, rounds: int = ROUNDS, backlog: int = BACKLOG) -> dict[str, float]:
    """Return the median seconds per call; see `event_turns`."""
    return {n: t.median for n, t in event_turns(rungs, rounds, backlog=backlog).items()}


def copy_bandwidth(count: int = 2**28) -> float:
    """Measure the bandwidth of a float32 copy, in bytes read and written per second."""
    source = torch.rand(count, device=DEVICE)
    target = torch.empty_like(source)
    taken = event_rounds({"copy": lambda: target.copy_(source)})["copy"]
    return 2 * source.numel() * 4 / taken
