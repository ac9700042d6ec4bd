"""Each kernel's group agrees with its formula, and counts what is inside it."""

import pytest

from benchmarks.common.timing import count_flops, gate
from benchmarks.ladder import kernel_groups

SMALL_OPS = {
    "mixture": lambda **how: kernel_groups.mixture(3, 5, 2, 8, **how),
    "attention": lambda **how: kernel_groups.attention(9, prefix=3, heads=2, head_width=4, **how),
    "layers": lambda **how: kernel_groups.layers(2, n_layers=2, tokens=3, width=8, **how),
    "consistency": lambda **how: kernel_groups.consistency(4, 6, **how),
}
STEPS = {
    "pgd_step": kernel_groups.sign_step,
    "apgd_step": kernel_groups.two_point_step,
    "random_start": kernel_groups.start,
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("op", SMALL_OPS)
def test_kernels_agree_with_their_formulas(op, backward):
    found = SMALL_OPS[op](backward=backward, compiled=False)
    gate(found.results)
    assert len(found.results["eager"]) >= 1


@pytest.mark.parametrize("op", STEPS)
def test_steps_agree_with_their_formulas(op):
    found = STEPS[op](2, image_size=8, backward=False, compiled=False)
    gate(found.results, limit=1e-6)
    assert len(found.results["eager"]) == 1
    for run in found.rungs.values():
        run()


def test_an_ops_inside_is_counted():
    """Attention of 9 classes of 2 to 8 tokens behind 3: every score, masked ones too."""
    rungs = SMALL_OPS["attention"](backward=False, compiled=False).rungs
    lengths = [2 + i % 7 for i in range(9)]
    own, front = sum(n * n for n in lengths), 3 * sum(lengths)
    assert count_flops(rungs["fastprompt"]) == 2 * 2 * 2 * 4 * (own + front)
    padded = 9 * 8 * (3 + 8)
    assert count_flops(rungs["eager"]) == 2 * 2 * 2 * 4 * padded
