"""GPU timing with CUDA events that hides launch overhead, peak memory, and hardware limits."""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import DeviceType

from .dry_run import DRY_RUN
from .timing import Timing, by_turns

DEVICE = "cpu" if DRY_RUN else "cuda"
PROFILED = DeviceType.CPU if DRY_RUN else DeviceType.CUDA
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


def profiled(function: Callable[[], object], most: int = 30) -> dict[str, Any]:
    """Profile one call, after another one.

    Returns:
        ``busy_share``, the share of the time between first and last kernel in which a kernel runs,
        and ``kernels``, the ``most`` kernels that take longest: name, calls, microseconds in all.
    """
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    activity = ProfilerActivity.CPU if DRY_RUN else ProfilerActivity.CUDA
    with profile(activities=[activity]) as record:
        function()
        torch.cuda.synchronize()
    ours = [event for event in record.events() if event.device_type == PROFILED]
    spans = sorted((event.time_range.start, event.time_range.end) for event in ours)
    kernels: dict[str, list[float]] = {}
    for event in ours:
        kernels.setdefault(event.name[:160], []).append(event.time_range.elapsed_us())
    longest = sorted(((sum(us), name, len(us)) for name, us in kernels.items()), reverse=True)
    return {
        "busy_share": busy_share(spans),
        "kernels": [[name, calls, us] for us, name, calls in longest[:most]],
    }


def busy_share(spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of the time from the first start to the last end that ``spans`` cover.

    Args:
        spans: starts and ends, sorted.
    """
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
    if DRY_RUN:
        rounds, warmup, backlog = 1, min(warmup, 1), 1
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


def event_rounds(
    rungs: Rungs, rounds: int = ROUNDS, backlog: int | None = BACKLOG
) -> dict[str, float]:
    """Return the median seconds per call; see `event_turns`."""
    return {n: t.median for n, t in event_turns(rungs, rounds, backlog=backlog).items()}


def copy_bandwidth(count: int = 2**28) -> float:
    """Measure the bandwidth of a float32 copy, in bytes read and written per second."""
    source = torch.rand(count, device=DEVICE)
    target = torch.empty_like(source)
    taken = event_rounds({"copy": lambda: target.copy_(source)})["copy"]
    return 2 * source.numel() * 4 / taken
