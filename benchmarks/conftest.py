"""What the benchmarks share: threads, memory that is kept, and the machine's facts."""

import pytest
import torch

from .machine import facts, keep_freed_memory

THREADS = 2


@pytest.fixture(scope="session")
def freed_memory_kept():
    return keep_freed_memory()


@pytest.fixture(autouse=True)
def _facts(benchmark, freed_memory_kept):
    torch.set_num_threads(THREADS)
    benchmark.extra_info |= facts() | {"freed_memory_kept": freed_memory_kept}
