"""Problem sizes of the ladder: ``small`` for two CPU cores, ``full`` for a GPU.

The environment variable `FASTPROMPT_BENCH` selects them; the default depends on the machine.
`FASTPROMPT_BENCH_ROUNDS` sets a minimum number of rounds for every group.
"""

from __future__ import annotations

import os

import torch

SMALL, FULL = "small", "full"
THREADS = 2  # torch's threads on a CPU


def _chosen() -> str:
    default = FULL if torch.cuda.is_available() else SMALL
    value = os.environ.get("FASTPROMPT_BENCH", default)
    if value not in (SMALL, FULL):
        raise ValueError(f"FASTPROMPT_BENCH must be {SMALL!r} or {FULL!r}, got {value!r}")
    return value


def _rounds() -> int:
    value = os.environ.get("FASTPROMPT_BENCH_ROUNDS", "0")
    if not value.isdigit():
        raise ValueError(f"FASTPROMPT_BENCH_ROUNDS must be a non-negative integer, got {value!r}")
    return int(value)


SIZE = _chosen()
LEAST_ROUNDS = _rounds()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = DEVICE == "cuda"
