"""The machine's memory, bare products and facts are as they are said to be."""

from functools import partial
from operator import mul
from pathlib import Path

import pytest
import torch

from benchmarks.common import machine, timing
from benchmarks.common.paths import ROOT


def test_the_bare_products_are_the_work_that_they_are_divided_by():
    gemms = machine.layer_gemms(tokens=6, width=8)
    flops = sum(g.flops for g in gemms)
    assert flops == 2 * 2 * 6 * 12 * 8 * 8
    assert timing.count_flops(machine.gemm_pass(gemms)) == flops


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_sees_what_was_allocated_and_freed_again(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))  # the child takes the path over
    # in bytes, whose pages are written at once; a few pages of the start may have been given back
    size = machine.in_child(machine.peak_memory, partial(mul, b"x", 64 << 20))
    assert 63 << 20 <= size < 72 << 20


def test_facts_name_the_machine():
    facts = machine.facts()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["processor"]
