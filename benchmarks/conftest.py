"""Shared fixtures: threads, memory settings, machine facts, and the regression check."""

import pytest
import torch

from .common.machine import facts, grow_heap, keep_freed_memory
from .common.paths import results
from .common.sizes import ON_GPU, SIZE, THREADS
from .ladder.guard import summarize
from .ladder.result_file import FILE, rows_of


@pytest.fixture(scope="session")
def freed_memory_kept():
    kept = keep_freed_memory()
    if kept and not ON_GPU:
        grow_heap()
    return kept


@pytest.fixture(autouse=True)
def _facts(benchmark, freed_memory_kept):
    if ON_GPU:
        # full float32 for the eager implementations; eager-careful enables TF32 itself
        torch.backends.cudnn.allow_tf32 = False
    else:
        torch.set_num_threads(THREADS)
    benchmark.extra_info |= facts() | {"freed_memory_kept": freed_memory_kept}


def pytest_report_header():
    return f"benchmarks: sizes {SIZE!r}; ratios are compared with {results() / FILE}"


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)  # the host name: results are public


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    session = getattr(config, "_benchmarksession", None)
    done = session.benchmarks if session else []
    entries = [b.as_dict() for b in done if b and not b.has_error]
    if said := summarize(rows_of(entries), results() / FILE):
        terminalreporter.section("ratios compared with the committed results")
        for line in said:
            terminalreporter.write_line(line)
