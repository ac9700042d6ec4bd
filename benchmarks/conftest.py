"""What the benchmarks share: threads, machine facts, and rungs timed by turns."""

import platform

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads(benchmark):
    torch.set_num_threads(2)
    benchmark.extra_info |= {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": "float32",
    }
