"""The kernels of the cosine distance over layers against the plain code in float64."""

import pytest
import torch
from helpers.kernel_place import DEVICE, DTYPE_IDS, DTYPES, EPSILON, INTERPRETED, MARKS, strided

from fastprompt.kernels import layer_consistency
from fastprompt.kernels.layer_consistency import launch

pytestmark = MARKS


def layers(n=3, dtype=torch.float32, shapes=((5, 4), (3, 4)), apart=0.5, seed=0):
    gen = torch.Generator().manual_seed(seed)
    a = [torch.randn(n, *s, generator=gen) for s in shapes]
    b = [x + apart * torch.randn(x.shape, generator=gen) for x in a]
    return tuple([x.to(dtype).to(DEVICE) for x in t] for t in (a, b))


def run(a, b, impl, learn=None):
    """The value, and the gradients in those of a, then of b, that learn."""
    a, b = ([t.detach() for t in ts] for ts in (a, b))
    inputs = [t for i, t in enumerate([*a, *b]) if learn is None or i in learn]
    for t in inputs:
        t.requires_grad_()
    value = layer_consistency(a, b, impl=impl)
    weight = torch.linspace(-1.5, 2.0, len(value), device=DEVICE).to(value.dtype)
    return value.detach(), torch.autograd.grad(value, inputs, weight)


def double(tensors):
    return [t.double() for t in tensors]


def of_row(got, exact):
    """The largest error of each row, and its largest value."""
    error = (got.double() - exact).abs().flatten(1).amax(dim=1)
    return torch.stack([error, exact.abs().flatten(1).amax(dim=1)])


def lost(a, b):
    """What the docstring says of norms that differ, in units of a rounding, ``[B]``."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        p, q = (t.double().flatten(1).norm(dim=1).clamp(min=1e-30) for t in (x, y))
        total = total + ((p - q) ** 2 / (2 * p * q)).clamp(max=1.0)
    return total


def check(a, b):
    """Within the rounding of a sum, of the formula, and of one store."""
    value, grads = run(a, b, "triton")
    exact, exact_grads = run(double(a), double(b), "torch")
    assert value.dtype == torch.float32
    assert (
        (value.double() - exact).abs() <= 8 * EPSILON[torch.float32] * (exact + lost(a, b))
    ).all()
    for got, want, like in zip(grads, exact_grads, [*a, *b], strict=True):
        assert got.dtype == like.dtype
        assert got.shape == like.shape
        if not like.numel():
            continue
        error, scale = of_row(got, want)
        # half a step for the store, a whole one under the interpreter, which truncates bfloat16
        low = like.dtype != torch.float32
        tolerance = (16 * EPSILON[torch.float32] + EPSILON[like.dtype] * low) * scale
        # radial parts of the size of 2 / |row|, in units of the weight, cancel
        tolerance += 4 * EPSILON[torch.float32] / like.double().flatten(1).norm(dim=1).clamp(1e-9)
        # float16 has a smallest number
        assert (error <= tolerance + 6e-8 * (like.dtype == torch.float16)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("size", [1, 3, 63, 127, 1024])
def test_sizes(size, dtype):
    check(*layers(2, dtype, [(size,), (2, size)]))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("length", [9 * 1024 + 5, 13 * 1024])
def test_rows_in_parts_beside_a_short_layer(length, dtype):
    check(*layers(2, dtype, [(length,), (7,)]))


def test_more_layers_than_one_block_takes():
    check(*layers(2, shapes=[(i % 5 + 2,) for i in range(35)]))


@pytest.mark.parametrize("most", [2, 64])
def test_equal_layers_in_one_or_several_launches(monkeypatch, most):
    monkeypatch.setattr(launch, "_MAX_LAYERS", most)
    check(*layers(3, shapes=[(5, 4)] * 5))


def test_equal_layers_of_other_strides():
    a, b = layers(3, shapes=[(5, 4)] * 4)
    a[1] = torch.cat([a[1], a[1]], dim=1)[:, :5]
    b[2] = torch.cat([b[2], b[2]], dim=1)[:, :5]
    check(a, b)


def test_layers_of_which_some_learn():
    a, b = layers(2, shapes=[(5, 4)] * 4)
    for learn in ((1, 2, 6), (0, 4), (7,)):
        full = run(a, b, "triton")[1]
        for got, i in zip(run(a, b, "triton", learn)[1], learn, strict=True):
            torch.testing.assert_close(got, full[i], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_a_stack(dtype):
    a, b = (torch.stack(t).requires_grad_() for t in layers(3, dtype, [(5, 4)] * 4))
    value = layer_consistency(a, b, impl="triton")
    exact = layer_consistency(a.double(), b.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    weight = torch.tensor([1.0, -2.0, 0.5], device=DEVICE)
    grads = torch.autograd.grad(value, (a, b), weight)
    exact_grads = torch.autograd.grad(exact, (a, b), weight.double())
    for got, want in zip(grads, exact_grads, strict=True):
        error, scale = of_row(got.flatten(0, 1), want.double().flatten(0, 1))
        assert (error <= 2 * EPSILON[dtype] * scale + 2e-6 * scale).all()


@pytest.mark.parametrize("ratio", [1e-3, 0.38, 0.39, 2.6, 2.7, 1e3])
def test_norms_that_differ(ratio):
    # both sides of where another formula takes over
    a, b = layers()
    b = [y * ratio for y in b]
    value, grads = run(a, b, "triton")
    exact, exact_grads = run(double(a), double(b), "torch")
    assert (
        (value.double() - exact).abs() <= 8 * EPSILON[torch.float32] * (exact + lost(a, b))
    ).all()
    for got, want in zip(grads, exact_grads, strict=True):
        error, scale = of_row(got, want)
        assert (error <= 32 * EPSILON[torch.float32] * scale).all()


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_keeps_its_digits_near_zero(apart):
    a, b = layers(2, shapes=[(512,)], apart=apart)
    value, grads = run(a, b, "triton")
    exact, exact_grads = run(double(a), double(b), "torch")
    assert ((value.double() - exact).abs() <= 8 * EPSILON[torch.float32] * exact).all()
    cosine = torch.cosine_similarity(a[0], b[0], dim=1)
    assert ((1 - cosine.double() - exact).abs() > 8 * EPSILON[torch.float32] * exact).any()
    for got, want in zip(grads, exact_grads, strict=True):
        error, scale = of_row(got, want)
        assert (error <= 16 * EPSILON[torch.float32] * scale).all()


def test_zero_vectors():
    a, b = layers(4)
    a[0][0], b[1][1] = 0.0, 0.0
    a[1][2], b[1][2] = 0.0, 0.0
    check(a, b)
    value, grads = run(a, b, "triton")
    assert value[0] >= 1
    for layer, sample in ((0, 0), (1, 1), (1, 2)):
        assert not grads[layer][sample].any()
        assert not grads[2 + layer][sample].any()


def test_equal_inputs_give_exactly_zero():
    a, _ = layers()
    value, grads = run(a, [x.clone() for x in a], "triton")
    assert not value.any()
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sample(bad):
    a, b = layers(dtype=torch.bfloat16)
    a[0][1, 2, 3] = bad
    value, grads = run(a, b, "triton")
    assert value.isnan().tolist() == [False, True, False]
    assert [bool(g[1].isnan().any()) for g in grads] == [True, False, True, False]
    assert not any(g[::2].isnan().any() for g in grads)


def test_large_float16_does_not_overflow():
    a, b = layers(dtype=torch.float16)
    a, b = ([t * 10_000 for t in ts] for ts in (a, b))
    value, grads = run(a, b, "triton")
    exact, exact_grads = run(double(a), double(b), "torch")
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    for got, want in zip(grads, exact_grads, strict=True):
        # below 6e-5 float16 has a fixed step
        torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=6e-8)


def test_empty_batch_and_empty_layer():
    a, b = layers(0)
    value, grads = run(a, b, "triton")
    assert value.shape == (0,)
    assert [g.shape for g in grads] == [t.shape for t in (*a, *b)]
    a, b = layers(2, shapes=[(0,), (3,)])
    check(a, b)
    assert (run(a, b, "triton")[0] >= 1).all()


@pytest.mark.parametrize("learn", [(0,), (1,), (2,), (3,), (0, 3)])
def test_only_what_learns(learn):
    a, b = layers()
    value, grads = run(a, b, "triton", learn)
    full = run(a, b, "triton")
    assert torch.equal(value, full[0])
    for got, i in zip(grads, learn, strict=True):
        torch.testing.assert_close(got, full[1][i], rtol=1e-6, atol=1e-7)


def in_order(a, b):
    """Layers whose memory differs, of the same values: gaps, slices, permuted, expanded."""
    sliced = [torch.cat([t[:, :1], t], dim=1)[:, 1:] for t in (*a, *b)]
    yield sliced[: len(a)], sliced[len(a) :]
    yield a, sliced[len(a) :]
    yield [strided(t) for t in a], b
    yield a, [t.transpose(0, 1).contiguous().transpose(0, 1) for t in b]
    permuted = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (*a, *b)]
    yield permuted[: len(a)], permuted[len(a) :]
    yield permuted[: len(a)], b


@pytest.mark.parametrize("place", range(6))
def test_any_order_of_memory(place):
    a, b = layers()
    x, y = list(in_order(a, b))[place]
    assert all(torch.equal(s, t) for s, t in zip([*a, *b], [*x, *y], strict=True))
    check(x, y)


def test_two_runs_give_the_same_bits():
    a, b = layers(2, shapes=[(9 * 1024 + 5,), (7,)])
    first, second = run(a, b, "triton"), run(a, b, "triton")
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(x, y) for x, y in zip(first[1], second[1], strict=True))


def test_a_sample_does_not_depend_on_its_neighbors():
    a, b = layers(3)
    alone = run([x[1:2] for x in a], [y[1:2] for y in b], "triton")[0]
    torch.testing.assert_close(run(a, b, "triton")[0][1:2], alone, rtol=1e-6, atol=0)


if not INTERPRETED:

    def test_in_a_cuda_graph():
        a, b = layers()
        inputs = [t.requires_grad_() for t in (*a, *b)]

        def step():
            value = layer_consistency(a, b, impl="triton")
            return value, torch.autograd.grad(value.sum(), inputs)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value, grads = step()
        with torch.no_grad():
            for place, new in zip(inputs, [t for ts in layers(seed=1) for t in ts], strict=True):
                place.copy_(new)
        graph.replay()
        expected, expected_grads = step()
        assert torch.equal(value, expected)
        assert all(torch.equal(x, y) for x, y in zip(grads, expected_grads, strict=True))
