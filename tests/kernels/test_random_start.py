"""The random numbers, the start from them, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprompt.attacks.random_start import random_start as attack_start
from fastprompt.attacks.random_start import start_key
from fastprompt.kernels import random_start
from fastprompt.kernels.random_start import reference
from fastprompt.kernels.random_start.eager import philox, uniform

CPU = torch.device("cpu")


def test_philox_equals_its_published_test_vectors():
    """Random123's known answers for philox4x32-10."""
    ones = 0xFFFFFFFF
    vectors = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ones, ones, ones, ones),
            (ones << 32) | ones,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0x299F31D0 << 32) | 0xA4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, seed, expected in vectors:
        words = philox(tuple(torch.tensor([c]) for c in counter), start_key(seed, 0, CPU)[0])
        assert tuple(int(w) for w in words) == expected
        assert reference.philox(counter, seed) == expected


def test_uniform_is_uniform_and_keyed_by_each_part():
    sample = uniform(torch.arange(64), 3 * 48 * 48 + 1, start_key(0, 0, CPU))
    assert sample.shape == (64, 6913)
    assert sample.min() >= 0
    assert sample.max() < 1 + 1e-7
    counts = torch.histc(sample, 20, 0, 1)
    expected = sample.numel() / 20
    # chi-square with 19 degrees of freedom: 43.8 is exceeded once in a thousand seeds
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert abs(torch.corrcoef(sample[:2])[0, 1]) < 0.05
    others = [
        uniform(torch.tensor([1]), 8, start_key(0, 0, CPU)),
        uniform(torch.tensor([0]), 8, start_key(1, 0, CPU)),
        uniform(torch.tensor([0]), 8, start_key(1 << 32, 0, CPU)),
        uniform(torch.tensor([0]), 8, start_key(0, 1, CPU)),
        uniform(torch.tensor([1 << 32]), 8, start_key(0, 0, CPU)),
    ]
    first = uniform(torch.tensor([0]), 8, start_key(0, 0, CPU))
    assert all(not torch.equal(first, other) for other in others)
    assert torch.equal(uniform(torch.tensor([7, 0]), 5, start_key(0, 0, CPU))[1], first[0, :5])


def images(n=3, size=5, dtype=torch.float32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def start(x, seed=0, restart=0, indices=None, **named):
    indices = torch.arange(len(x)) if indices is None else indices
    return random_start(x, indices, start_key(seed, restart, CPU), **({"eps": 0.1} | named))


@pytest.mark.parametrize("sides", ["two-sided", "one-sided"])
def test_equals_the_formula(sides):
    x, indices, key = images(3, 3), torch.tensor([7, 2**40 + 1, -3]), start_key(-5, 2**31 + 2, CPU)
    settings = {"eps": 0.3, "lo": 0.1, "hi": 0.8}
    got = random_start(x, indices, key, sides=sides, **settings)
    expected = reference.random_start(x, indices, key, one_sided=sides == "one-sided", **settings)
    assert torch.equal(got, expected)
    rounded = random_start(x.double(), indices, key, sides=sides, **settings)
    torch.testing.assert_close(rounded, expected.double(), rtol=0, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(eps=st.floats(0, 1), seed=st.integers(-(2**70), 2**70), restart=st.integers(0, 2**32 - 1))
def test_never_leaves_ball_or_box(eps, seed, restart):
    x = images()
    for sides in ("two-sided", "one-sided"):
        got = start(x, seed, restart, eps=eps, sides=sides)
        assert (got - x).abs().max() <= eps + 1e-7
        assert got.min() >= 0
        assert got.max() <= 1
        assert sides == "two-sided" or (got >= x).all()


def test_a_radius_for_each_image_equals_single_ones():
    x, radii = images(), torch.tensor([0.0, 0.05, 0.3])
    got = start(x, eps=radii)
    for row in range(3):
        index = torch.tensor([row])
        alone = start(x[row : row + 1], indices=index, eps=float(radii[row]))
        assert torch.equal(got[row : row + 1], alone)
    assert torch.equal(got[0], x[0])
    assert not torch.equal(got[1], x[1])


def test_the_attacks_draw_from_it():
    x, indices = images(), torch.tensor([4, 0, 9], dtype=torch.int32)
    mine = attack_start(x, 0.1, indices, seed=3, restart=1, sides="one-sided")
    assert torch.equal(mine, start(x, 3, 1, indices.long(), sides="one-sided"))


def test_inputs_are_left_alone_and_memory_formats_do_not_matter():
    x = images(size=6)
    before = x.clone()
    expected = start(x)
    assert torch.equal(x, before)
    last = start(x.to(memory_format=torch.channels_last))
    assert torch.equal(last, expected)
    assert last.is_contiguous()
    assert start(x[:0]).shape == (0, 3, 6, 6)


def test_opcheck():
    x, each = images(), torch.full((3,), 0.1)
    key, indices = start_key(1, 2, CPU), torch.arange(3)
    for epses in (None, each):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            given = x.contiguous(memory_format=memory_format)
            arguments = (given, indices, key, epses, 0.1, 0.0, 1.0, False)
            torch.library.opcheck(torch.ops.fastprompt.random_start.default, arguments)


def test_compiles_without_graph_breaks_and_draws_afresh():
    compiled = torch.compile(random_start, fullgraph=True, dynamic=True)
    key = start_key(1, 0, CPU)
    for n in (3, 5):
        x, indices = images(n), torch.arange(n)
        first = compiled(x, indices, key, eps=0.1)
        assert torch.equal(first, random_start(x, indices, key, eps=0.1))
        key[1] += 1
        assert not torch.equal(compiled(x, indices, key, eps=0.1), first)
    on_meta = random_start(*(t.to("meta") for t in (x, indices, key)), eps=0.1)
    assert on_meta.shape == x.shape


def refused(error, match, **changes):
    x = images()
    arguments = {"x": x, "indices": torch.arange(3), "key": start_key(0, 0, CPU), "eps": 0.1}
    with pytest.raises(error, match=match):
        random_start(**arguments | changes)


def test_what_it_refuses():
    refused(TypeError, "^x .*float32.*bfloat16", x=images().bfloat16())
    refused(ValueError, r"^x .*\[B, \.\.\.\]", x=torch.zeros(()))
    refused(ValueError, r"^indices .*\[3\].*\[2\]", indices=torch.arange(2))
    refused(TypeError, "^indices .*int64.*float32", indices=torch.arange(3).float())
    refused(ValueError, r"^key .*\[2\].*\[3\]", key=torch.zeros(3, dtype=torch.int64))
    refused(TypeError, "^key .*int64.*float32", key=torch.zeros(2))
    refused(ValueError, "^key .*cpu.*meta", key=start_key(0, 0, torch.device("meta")))
    refused(ValueError, "^eps .*-0.1", eps=-0.1)
    refused(ValueError, "^eps .* inf", eps=float("inf"))
    refused(ValueError, r"^eps .*\[3\].*\[2\]", eps=torch.zeros(2))
    refused(ValueError, r"^eps .*\[3\].*\[3, 1\]", eps=torch.zeros(3, 1))
    refused(TypeError, "^eps .*float32.*int64", eps=torch.arange(3))
    refused(ValueError, "^sides .*'both'", sides="both")
    refused(ValueError, "^lo .*hi.*1.0.*0.0", lo=1.0, hi=0.0)
    refused(RuntimeError, "^impl.*'triton'.*cpu", impl="triton")
    refused(ValueError, "^impl .*'cuda'", impl="cuda")


@pytest.mark.parametrize("name", ["x", "indices", "key"])
@pytest.mark.parametrize("value", [None, [0, 1, 2]])
def test_tensors_are_wanted(name, value):
    refused(TypeError, f"^{name} .*tensor.*{type(value).__name__}", **{name: value})


@pytest.mark.parametrize("name", ["eps", "lo", "hi"])
def test_numbers_are_wanted(name):
    refused(TypeError, f"^{name} .*number.*NoneType", **{name: None})
    refused(TypeError, f"^{name} .*number.*'4/255'", **{name: "4/255"})
    refused(ValueError, f"^{name} .*nan", **{name: float("nan")})
