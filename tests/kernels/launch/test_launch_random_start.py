"""The random start's kernel against the plain code, bit for bit."""

import pytest
import torch
from helpers.kernel_place import DEVICE, INTERPRETED, MARKS, strided

from fastprompt.attacks.random_start import start_key
from fastprompt.kernels import random_start

pytestmark = MARKS

KEYS = [(0, 0), (1, 2), (-5, 2**31 + 3), (2**63 - 1, 2**32 - 1), (2**40 + 7, 1)]


def images(n, *shape):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(n)).to(DEVICE)


def both(x, indices, seed=0, restart=0, **named):
    key = start_key(seed, restart, x.device)
    given = ({"eps": 0.1} | named, key, torch.tensor(indices, dtype=torch.int64, device=DEVICE))
    return [
        random_start(x, given[2], given[1], impl=impl, **given[0]) for impl in ("triton", "torch")
    ]


@pytest.mark.parametrize(("seed", "restart"), KEYS)
@pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (3, 3, 3), (3, 63, 63), (127,)])
def test_equal_bits(seed, restart, shape):
    got, expected = both(images(3, *shape), [0, 2**40 + 3, -1], seed, restart)
    assert torch.equal(got, expected)
    assert got.is_contiguous()


@pytest.mark.parametrize("sides", ["two-sided", "one-sided"])
def test_sides_box_and_a_radius_for_each_image(sides):
    x = images(3, 3, 20, 20)
    radii = torch.tensor([0.0, 0.01, 1.0], device=DEVICE)
    for eps in (0.3, 0.0, radii):
        got, expected = both(x, [5, 6, 7], sides=sides, eps=eps, lo=0.1, hi=0.8)
        assert torch.equal(got, expected)
    assert not torch.equal(got[2], x[2])


def test_memory_formats_and_an_empty_batch():
    x = images(2, 3, 6, 6)
    expected = both(x, [3, 4])[1]
    for spread in (
        x.to(memory_format=torch.channels_last),
        strided(x),
        x.flip(-1).clone().flip(-1),
    ):
        assert torch.equal(both(spread, [3, 4])[0], expected)
    assert both(x[:0], [])[0].shape == (0, 3, 6, 6)


def test_a_pixel_that_is_no_number_stays_so():
    x = images(2, 3, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    got, expected = both(x, [0, 1])
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


if not INTERPRETED:

    def test_a_replayed_graph_draws_afresh():
        x, indices = images(4, 3, 32, 32), torch.arange(4, device=DEVICE)
        key = start_key(7, 0, x.device)
        for _ in range(2):
            random_start(x, indices, key, eps=0.1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = random_start(x, indices, key, eps=0.1)
            key[1] += 1
        key[1] = 0
        drawn = []
        for restart in range(3):
            graph.replay()
            drawn.append(out.clone())
            assert torch.equal(out, both(x, [0, 1, 2, 3], 7, restart)[1])
        assert not torch.equal(drawn[0], drawn[1])
