"""The step kernels against the plain code, bit for bit."""

import pytest
import torch
from helpers.kernel_place import DEVICE, DTYPE_IDS, DTYPES, INTERPRETED, MARKS, strided

from fastprompt.kernels import apgd_step, pgd_step, pgd_step_

pytestmark = MARKS

INFINITY, NAN = float("inf"), float("nan")
SIZES = [(2, 1), (2, 3), (1, 63), (2, 127), (0, 5)]


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
        out.append((got, counts))
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


@pytest.mark.parametrize("change", ["channels-last", "mixed", "strided", "flipped"])
def test_memory_formats(change):
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
        counts = no_counts(8), no_counts(8)
        named = {"alpha": 0.02, "eps": 0.04, "impl": "triton"}
        runs = [pgd_step(x_adv, x, grad, counts=c, **named) for c in counts]
        assert torch.equal(*runs)
        assert torch.equal(*counts)

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
