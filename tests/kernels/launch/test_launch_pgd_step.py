"""The step kernels against the plain code, bit for bit."""

import pytest
import torch
from place import DEVICE, DTYPE_IDS, DTYPES, INTERPRETED, MARKS, _poisoned, strided  # noqa: F401

from fastprompt.kernels import apgd_step, momentum_step, pgd_step, pgd_step_

pytestmark = MARKS

INFINITY, NAN = float("inf"), float("nan")
SIZES = [(2, 1), (2, 3), (1, 63), (2, 127), (0, 5)]
STATISTICS = torch.tensor([0.1, 0.4, 0.7]), torch.tensor([0.2, 0.3, 0.9])


def batch(n=3, size=5, grad_dtype=torch.float32, seed=0):
    """The current point, another one, the clean images, a gradient with all kinds of entries."""
    gen = torch.Generator().manual_seed(seed)
    x, a, b = torch.rand(3, n, 3, size, size, generator=gen)
    x_adv, other = ((x + 0.1 * (t - 0.5)).clamp(0, 1) for t in (a, b))
    grad = torch.randn(x.shape, generator=gen)
    odd = torch.tensor([0.0, -0.0, NAN, INFINITY, -INFINITY, 1e-7, -1e-7])
    flat = grad.view(-1)
    flat[: min(7, len(flat))] = odd[: min(7, len(flat))]
    flat[-3:] = flat.new_tensor([0.0, NAN, 1.0])[: len(flat[-3:])]
    return tuple(t.to(DEVICE) for t in (x_adv, other, x, grad.to(grad_dtype)))


def no_counts(n):
    return torch.zeros(n, 2, dtype=torch.int64, device=DEVICE)


def both(step, *images, **named):
    """Results of the kernel and of the plain code, with the counts of each."""
    out = []
    for impl in ("triton", "torch"):
        counts = no_counts(len(images[0]))
        got = step(*(t.clone() for t in images), counts=counts, impl=impl, **named)
        out.append((*got, counts) if isinstance(got, tuple) else (got, counts))
    return out


def equal(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("n", "size"), SIZES)
def test_equal_bits(n, size, dtype):
    x_adv, _, x, grad = batch(n, size, dtype)
    equal(*both(pgd_step, x_adv, x, grad, alpha=0.02, eps=0.04))
    equal(*both(pgd_step_, x_adv, x, grad, alpha=0.02, eps=0.04, targeted=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("n", "size"), SIZES)
def test_equal_bits_of_two_points(n, size, dtype):
    x_adv, x_prev, x, grad = batch(n, size, dtype)
    for momentum in (0.75, 1.0):
        named = {"alpha": 0.02, "eps": 0.04, "momentum": momentum}
        equal(*both(apgd_step, x_adv, x_prev, x, grad, **named))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("n", "size"), SIZES)
def test_momentum(n, size, dtype):
    x_adv, _, x, grad = batch(n, size, dtype)
    velocity = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    named = {"alpha": 0.02, "eps": 0.04, "decay": 0.9}
    got, expected = both(momentum_step, x_adv, x, grad, velocity, **named)
    # the mean is summed in another order: a few last digits of the momentum, and so only the sign
    # of a momentum of nothing but rounding
    torch.testing.assert_close(got[1], expected[1], rtol=2e-6, atol=2e-6)
    clear = expected[1].abs() > 1e-5
    assert torch.equal(got[0][clear], expected[0][clear])
    assert torch.equal(got[2], expected[2])


def test_momentum_of_a_gradient_without_a_finite_entry():
    x_adv, _, x, grad = batch(3)
    for fill in (0.0, NAN, INFINITY, 3e38):
        named = {"alpha": 0.02, "eps": 0.04}
        equal(*both(momentum_step, x_adv, x, torch.full_like(grad, fill), x, **named))


def test_momentum_over_many_chunks_of_an_image():
    """More partial sums than are read at once: 129 programs for one image."""
    x = torch.rand(1, 3, 296, 298, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    grad = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    named = {"alpha": 0.02, "eps": 0.04}
    _, velocity = momentum_step(x, x, grad, torch.zeros_like(x), impl="triton", **named)
    exact = grad.double() / grad.double().abs().mean()
    torch.testing.assert_close(velocity.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "eps"), [(0.02, 0.0), (0.5, 0.01), (0.0, 0.1), (2.0, 1.0), (1e30, 0.1)]
)
def test_extremes(alpha, eps):
    x_adv, x_prev, x, grad = batch()
    equal(*both(pgd_step, x_adv, x, grad, alpha=alpha, eps=eps))
    equal(*both(apgd_step, x_adv, x_prev, x, grad, alpha=alpha, eps=eps, lo=0.2, hi=0.7))
    equal(*both(pgd_step, x_adv, x, grad, alpha=alpha, eps=eps, lo=0.2, hi=0.7))


def test_a_pixel_that_is_no_number_stays_so():
    x_adv, x_prev, x, grad = batch()
    x_adv[0, 0, 0, 0] = NAN
    x[1, 0, 0, 0] = NAN
    equal(*both(pgd_step, x_adv, x, grad, alpha=0.02, eps=0.04))
    equal(*both(apgd_step, x_adv, x_prev, x, grad, alpha=0.02, eps=0.04))


def test_settings_of_each_image():
    x_adv, x_prev, x, grad = batch(3, 27)  # more than one program for an image
    named = {
        "alpha": torch.tensor([0.0, 0.01, 0.2], device=DEVICE),
        "eps": torch.tensor([0.02, 0.0, 0.07], device=DEVICE),
    }
    for targeted in (False, True):
        equal(*both(pgd_step, x_adv, x, grad, targeted=targeted, **named))
        equal(*both(apgd_step, x_adv, x_prev, x, grad, targeted=targeted, **named))
        velocity = torch.where(grad > 0, 10.0, -10.0)
        got, expected = both(momentum_step, x_adv, x, grad, velocity, targeted=targeted, **named)
        assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 3, 27])
def test_normalized_copy(size, layout, dtype):
    x_adv, _, x, grad = (t.contiguous(memory_format=layout) for t in batch(2, size))
    mean, std = (t.to(DEVICE) for t in STATISTICS)
    copies = torch.full((2, *x.shape), NAN, device=DEVICE, dtype=dtype)
    named = {"alpha": 0.02, "eps": 0.04, "mean": mean, "std": std}
    copies = [c.contiguous(memory_format=layout) for c in copies]
    for copy, impl in zip(copies, ("triton", "torch"), strict=True):
        pgd_step(x_adv, x, grad, normalized=copy, impl=impl, **named)
    # bf16 is cut off instead of rounded in the interpreter: one step between its values
    limit = torch.finfo(dtype).eps if INTERPRETED and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(copies[0], copies[1], rtol=limit, atol=0)


@pytest.mark.parametrize("change", ["channels-last", "mixed", "strided", "flipped"])
def test_layouts(change):
    x_adv, x_prev, x, grad = batch(2, 6)
    last = torch.channels_last
    images = {
        "channels-last": [t.to(memory_format=last) for t in (x_adv, x_prev, x, grad)],
        "mixed": [x_adv.to(memory_format=last), x_prev, x, grad],
        "strided": [strided(t) for t in (x_adv, x_prev, x, grad)],
        "flipped": [t.flip(-1).contiguous().flip(-1) for t in (x_adv, x_prev, x, grad)],
    }[change]
    now, before, clean, slope = images
    named = {"alpha": 0.02, "eps": 0.04}
    expected = pgd_step(x_adv, x, grad, impl="torch", **named)
    assert torch.equal(pgd_step(now, clean, slope, impl="triton", **named), expected)
    equal(*both(pgd_step, now, clean, slope, **named))
    equal(*both(apgd_step, now, before, clean, slope, **named))
    copy = strided(x) if change == "strided" else torch.empty_like(now)
    statistics = {"mean": STATISTICS[0].to(DEVICE), "std": STATISTICS[1].to(DEVICE)}
    pgd_step(now, clean, slope, normalized=copy, impl="triton", **statistics, **named)
    mean, std = (t.view(3, 1, 1).to(DEVICE) for t in STATISTICS)
    torch.testing.assert_close(copy, (expected - mean) / std, rtol=0, atol=0)
    written = now.clone() if change != "strided" else now
    pgd_step_(written, clean, slope, impl="triton", **named)
    assert torch.equal(written, expected)


def test_counts_are_added_to_what_is_there():
    x_adv, _, x, grad = batch(3, 40)
    counts, expected = no_counts(3) + 5, no_counts(3) + 5
    for _ in range(2):
        pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04, counts=counts, impl="triton")
        pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04, counts=expected, impl="torch")
    assert torch.equal(counts, expected)
    assert counts.sum() > 5 * 6


if not INTERPRETED:

    def test_a_captured_step_is_replayed_on_what_its_buffers_hold():
        first, second = batch(4, 32, seed=0), batch(4, 32, seed=1)
        buffers = [t.clone() for t in first]
        counts = no_counts(4)
        named = {"alpha": torch.full((4,), 0.02, device=DEVICE), "eps": 0.04}
        for _ in range(2):
            pgd_step(buffers[0], buffers[2], buffers[3], counts=counts, **named)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = pgd_step(buffers[0], buffers[2], buffers[3], counts=counts, **named)
        for images in (first, second):
            for buffer, tensor in zip(buffers, images, strict=True):
                buffer.copy_(tensor)
            counts.zero_()
            graph.replay()
            expected_counts = no_counts(4)
            expected = pgd_step(
                images[0], images[2], images[3], counts=expected_counts, impl="torch", **named
            )
            assert torch.equal(out, expected)
            assert torch.equal(counts, expected_counts)

    def test_two_runs_give_the_same_bits():
        x_adv, _, x, grad = batch(8, 224)
        runs = [
            momentum_step(x_adv, x, grad, x, alpha=0.02, eps=0.04, impl="triton") for _ in range(2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_past_two_to_the_31_entries():
        """A batch whose last entry lies past 2^31: three tensors of 8.6 GB and a gradient."""
        free, _ = torch.cuda.mem_get_info()
        if free < 40 * 2**30:
            pytest.skip(f"needs 40 GiB of free GPU memory, there are {free / 2**30:.0f}")
        n, entries = 2**31 // 2**20 + 1, 2**20
        x = torch.full((n, entries), 0.5, device=DEVICE)
        grad = torch.ones(n, entries, device=DEVICE, dtype=torch.bfloat16)
        grad[-1] = -1
        grad[-1, -1] = 0
        counts = no_counts(n)
        out = pgd_step(x, x, grad, alpha=0.25, eps=1.0, counts=counts, impl="triton")
        assert (out[:-1] == 0.75).all()
        assert (out[-1, :-1] == 0.25).all()
        assert out[-1, -1] == 0.5
        assert counts[-1].tolist() == [1, 0]
        assert not counts[:-1].any()
