"""Estimates of every kernel at its benchmark's shape: near the roofline, and as committed."""

import json
import os

import pytest
from estimates import ESTIMATES, MULTIPROCESSORS, blocks_per_multiprocessor, table

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("launchers differ under the interpreter", allow_module_level=True)

KNOWN = json.loads(ESTIMATES.read_text())


def test_the_committed_table_is_that_of_the_launchers():
    assert table(lambda name, _: KNOWN[name]) == KNOWN, "run python tests/kernels/aot/estimates.py"


# by card and kernel; their programs read the same features too often
ABOVE_TWICE = {
    "H100": {"_marginals_kernel"},
    "H200": {"_marginals_kernel", "_products_kernel", "_text_gradient_kernel"},
}


def _marked(name: str) -> object:
    card, _, kernel, _ = name.split("/")
    known = kernel in ABOVE_TWICE[card]
    reason = "not reached yet; strict, so that a better kernel leaves the list"
    return pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason=reason)] * known)


@pytest.mark.parametrize("name", map(_marked, KNOWN))
def test_at_most_twice_the_roofline(name):
    row = KNOWN[name]
    assert row["roofline"] <= row["estimate"] <= 2 * row["roofline"]


@pytest.mark.parametrize("name", KNOWN)
def test_the_programs_fill_the_gpu(name):
    """No kernel of more than 2 us beside its launch leaves a third of a GPU idle in its waves."""
    row = KNOWN[name]
    assert row["blocks"] >= 1
    if row["estimate"] > 5:
        busy = row["programs"] / MULTIPROCESSORS
        assert busy / -(-busy // 1) >= 2 / 3


def test_every_kernel_has_a_benchmark():
    from work import WORK

    assert {name.split("/")[2] for name in KNOWN} == set(WORK)


def test_blocks_per_multiprocessor():
    # limited by registers, by shared memory, by warps
    assert blocks_per_multiprocessor(128, 0, 4) == 4
    assert blocks_per_multiprocessor(32, 75_000, 4) == 3
    assert blocks_per_multiprocessor(16, 0, 8) == 8
