"""How large the ladder is: ``small`` for two CPU cores, ``full`` for a GPU.

`FASTPROMPT_BENCH` says which; by default what the machine has. `FASTPROMPT_BENCH_ROUNDS` asks for
more rounds than a group has by itself.
"""

from __future__ import annotations

import os

import torch

SMALL, FULL = "small", "full"
THREADS = 2  # of torch, on a CPU


def _chosen() -> str:
    default = FULL if torch.cuda.is_available() else SMALL
    value = os.environ.get("FASTPROMPT_BENCH", default)
    if value not in (SMALL, FULL):
        raise ValueError(f"FASTPROMPT_BENCH must be {SMALL!r} or {FULL!r}, got {value!r}")
    return value


def _rounds() -> int:
    value = os.environ.get("FASTPROMPT_BENCH_ROUNDS", "0")
    if not value.isdigit():
        raise ValueError(f"FASTPROMPT_BENCH_ROUNDS must be a number of rounds, got {value!r}")
    return int(value)


SIZE = _chosen()
LEAST_ROUNDS = _rounds()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = DEVICE == "cuda"
