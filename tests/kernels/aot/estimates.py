"""Estimated times of every kernel at its benchmark's shape, on an H100 and an H200.

python tests/kernels/aot/estimates.py    # write estimates.json anew

No kernel has been measured on a GPU. An estimate is the launch and the longest of three times: the
memory's for what is needed at least, the second-level cache's for what the programs read, and the
units' for whole tiles, in whole rounds of one program per multiprocessor. The roofline is the
launch and the longer of the times of the memory and the units for what is needed at least. Blocks
per multiprocessor and waves come from the registers and the shared memory of sm_90, which the table
holds, too: the tests compile nothing.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
ESTIMATES = HERE / "estimates.json"
LAUNCH, MULTIPROCESSORS = 3e-6, 132
MEMORY = {"H100": 3.35e12, "H200": 4.8e12}
# second-level cache in all, and of one multiprocessor: 64 bytes a clock
CACHE, CACHE_EACH = 5.5e12, 64 * 1.755e9
UNITS = {"tensor": 989e12, "float32": 67e12}
# share of the tensor cores' rate without the asynchronous instructions of a whole warp group
SYNCHRONOUS = 0.6
TARGET = "sm_90"
# op, case and dtype of each benchmark of benchmarks/gpu/kernels.py
BENCHMARKS = [
    ("mixture_logits", "mixture-b256-c1000-k8-d512", "bf16"),
    ("mixture_logits", "mixture-backward-b256-c1000-k8-d512", "bf16"),
    ("prefix_attention", "prefix_attention", "bf16"),
    ("layer_consistency", "layer_consistency-list", "bf16"),
    ("layer_consistency", "layer_consistency-gradients", "bf16"),
    ("consistency_loss", "consistency_loss-benchmark", "fp32"),
    ("consistency_loss", "consistency_loss-benchmark-gradient", "fp32"),
    ("pgd_step", "pgd_step", "fp32"),
    ("pgd_step", "pgd_step", "bf16"),
    ("pgd_step", "apgd_step", "fp32"),
    ("random_start", "random_start", "fp32"),
]


def blocks_per_multiprocessor(registers: int, shared: int, warps: int) -> int:
    """Blocks that fit at once: 65,536 registers, 227 KiB of shared memory, 64 warps, 32 blocks."""
    of_a_warp = math.ceil(registers * 32 / 256) * 256
    by_memory = 227 * 1024 // (shared + 1024)
    return min(65536 // (of_a_warp * warps), by_memory, 64 // warps, 32)


def estimate(launch: Any, resources: dict[str, Any], memory: float) -> dict[str, float]:
    """Return the times in microseconds, and how the programs fill the GPU."""
    from work import WORK

    work = WORK[launch.name](launch)
    programs, warps = launch.programs, launch.options["num_warps"]
    blocks = blocks_per_multiprocessor(resources["registers"], resources["shared"], warps)
    rounds = math.ceil(programs / MULTIPROCESSORS) * MULTIPROCESSORS / programs
    slow = {"tensor": 1.0 if resources["wgmma"] else SYNCHRONOUS, "float32": 1.0}
    units = sum(n / UNITS[kind] / slow[kind] for kind, n in work.done.items()) * rounds
    cache = min(CACHE, min(programs, MULTIPROCESSORS) * CACHE_EACH)
    least = max(work.needed / memory, sum(n / UNITS[k] for k, n in work.flops.items()))
    found = max(work.needed / memory, work.read / cache, units)
    return {
        **{name: resources[name] for name in ("registers", "shared", "wgmma")},
        "programs": programs,
        "blocks": blocks,
        "waves": round(programs / (blocks * MULTIPROCESSORS), 2),
        "roofline": round((least + LAUNCH) * 1e6, 2),
        "estimate": round((found + LAUNCH) * 1e6, 2),
    }


def table(resources_of: Callable[[str, Any], dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the estimates of each card, by card, case, kernel and dtype.

    Args:
        resources_of: returns the resources of a row's name and launch.
    """
    from helpers.compiled_kernels import DTYPES, launches, module_of

    found = {}
    for op, case, dtype in BENCHMARKS:
        for launch in launches(module_of(op).cases(DTYPES[dtype])[case]):
            for card, memory in MEMORY.items():
                name = f"{card}/{case}/{launch.name}/{dtype}"
                found[name] = estimate(launch, resources_of(name, launch), memory)
    return found


def _compiled(_: str, launch: Any) -> dict[str, Any]:
    from helpers.compiled_kernels import build, usage

    with tempfile.TemporaryDirectory() as folder:
        return usage(build(launch, TARGET), TARGET, Path(folder))


if __name__ == "__main__":
    rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in table(_compiled).items())
    ESTIMATES.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
