"""The sign step against its formula, its counts, and what it refuses."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.steps import batch, given_anew
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprompt.kernels import pgd_step, pgd_step_
from fastprompt.kernels.pgd_step import reference


def test_equals_the_formula():
    x_adv, x, grad = batch(dtype=torch.float64)
    grad[0, 0, 0] = 0.0
    got = pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04)
    expected = reference.pgd_step(x_adv, x, grad, 0.02, 0.04)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


def test_targeted_steps_against_the_gradient():
    x_adv, x, grad = batch()
    down = pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04, targeted=True)
    assert torch.equal(down, pgd_step(x_adv, x, -grad, alpha=0.02, eps=0.04))
    assert not torch.equal(down, pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04))


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(0, 1),
    alpha=st.floats(0, 2),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30, float("inf")]),
)
def test_never_leaves_ball_or_box(eps, alpha, seed, scale):
    _, x, grad = batch(seed=seed)
    gen = torch.Generator().manual_seed(seed)
    anywhere = torch.rand(x.shape, generator=gen)
    got = pgd_step(anywhere, x, grad * scale, alpha=alpha, eps=eps)
    assert (got - x).abs().max() <= eps + 1e-7
    assert got.min() >= 0
    assert got.max() <= 1


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_pixels_without_a_gradient_stand_still(bad):
    _, x, _ = batch()
    got = pgd_step(x, x, torch.full_like(x, bad), alpha=0.1, eps=0.1)
    assert torch.equal(got, x)


def test_an_infinite_gradient_has_a_sign():
    _, x, _ = batch()
    got = pgd_step(x * 0, x * 0, torch.full_like(x, float("inf")), alpha=0.1, eps=0.2)
    assert torch.equal(got, torch.full_like(x, 0.1))


def test_inputs_are_left_alone():
    x_adv, x, grad = batch()
    before = x_adv.clone(), x.clone(), grad.clone()
    pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04)
    assert all(torch.equal(a, b) for a, b in zip(before, (x_adv, x, grad), strict=True))


def test_counts_add_up_per_image():
    x_adv, x, grad = batch(n=3)
    grad[0, 0, 0, :2] = 0.0
    grad[1, 2, 1, 0] = float("nan")
    grad[1, 2, 1, 1] = float("-inf")
    counts = torch.zeros(3, 2, dtype=torch.int64)
    for _ in range(2):
        pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04, counts=counts)
    assert counts.tolist() == [[4, 0], [0, 4], [0, 0]]


@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_only_the_sign_of_a_gradient_of_another_dtype_counts(grad_dtype):
    x_adv, x, grad = batch()
    got = pgd_step(x_adv, x, grad.to(grad_dtype), alpha=0.02, eps=0.04)
    assert got.dtype == torch.float32
    expected = pgd_step(x_adv, x, grad.to(grad_dtype).float(), alpha=0.02, eps=0.04)
    assert torch.equal(got, expected)


def test_empty_batch():
    empty = torch.zeros(0, 3, 4, 4)
    assert pgd_step(empty, empty, empty, alpha=0.1, eps=0.1).shape == (0, 3, 4, 4)


def test_non_contiguous_and_channels_last_give_the_same():
    x_adv, x, grad = batch(size=6)
    expected = pgd_step(x_adv, x, grad, alpha=0.02, eps=0.04)
    last = [t.to(memory_format=torch.channels_last) for t in (x_adv, x, grad)]
    assert torch.equal(pgd_step(*last, alpha=0.02, eps=0.04), expected)
    flipped = [t.flip(-1).contiguous().flip(-1) for t in (x_adv, x, grad)]
    assert torch.equal(pgd_step(*flipped, alpha=0.02, eps=0.04), expected)


def test_a_step_for_each_image_equals_single_ones():
    x_adv, x, grad = batch()
    alphas, radii = torch.tensor([0.0, 0.01, 0.2]), torch.tensor([0.02, 0.0, 0.07])
    got = pgd_step(x_adv, x, grad, alpha=alphas, eps=radii)
    for row in range(3):
        one = slice(row, row + 1)
        numbers = {"alpha": float(alphas[row]), "eps": float(radii[row])}
        assert torch.equal(got[one], pgd_step(x_adv[one], x[one], grad[one], **numbers))
    assert torch.equal(got[1], x[1])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_in_place_is_the_same_and_hands_back_what_it_wrote_over(memory_format):
    x_adv, x, grad = (t.contiguous(memory_format=memory_format) for t in batch(size=6))
    counts, expected_counts = torch.zeros(2, 3, 2, dtype=torch.int64)
    named = {"alpha": 0.02, "eps": 0.04, "targeted": True}
    expected = pgd_step(x_adv, x, grad, counts=expected_counts, **named)
    assert not torch.equal(expected, x_adv)
    got = pgd_step_(x_adv, x, grad, counts=counts, **named)
    assert got is x_adv
    assert torch.equal(got, expected)
    assert torch.equal(counts, expected_counts)


def test_nothing_is_differentiated():
    x_adv, x, grad = (t.requires_grad_() for t in batch())
    assert not pgd_step(x_adv, x, grad, alpha=0.1, eps=0.1).requires_grad
    with pytest.raises(ValueError, match=r"^x_adv .*gradient.*detach"):
        pgd_step_(x_adv, x, grad, alpha=0.1, eps=0.1)
    with pytest.raises(TypeError, match=r"^x_adv .*tensor.*NoneType"):
        pgd_step_(None, x, grad, alpha=0.1, eps=0.1)


def test_implementations_agree():
    x_adv, x, grad = batch()
    named = {"alpha": 0.02, "eps": 0.04}
    auto = pgd_step(x_adv, x, grad, **named)
    assert torch.equal(auto, pgd_step(x_adv, x, grad, impl="torch", **named))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(memory_format):
    x_adv, x, grad = (t.contiguous(memory_format=memory_format) for t in batch(size=6))
    each, counts = torch.full((3,), 0.1), torch.zeros(3, 2, dtype=torch.int64)
    scalars = (0.1, 0.2, 0.0, 1.0, True)
    plain = (x_adv, x, grad, None, None, *scalars, None)
    whole = (x_adv, x, grad, each, each, *scalars, counts)
    for arguments in (plain, whole):
        for name in ("pgd_step", "pgd_step_"):
            operator = getattr(torch.ops.fastprompt, name).default
            torch.library.opcheck(operator, tuple(given_anew(arguments)))


@pytest.mark.parametrize("step", [pgd_step, pgd_step_])
def test_compiles_without_graph_breaks(step):
    def two_steps(x_adv, x, grad, counts):
        named = {"alpha": 0.02, "eps": 0.04, "counts": counts}
        return step(step(x_adv.clone(), x, grad, **named), x, grad, **named)

    compiled = torch.compile(two_steps, fullgraph=True, dynamic=True)
    for n, size in ((3, 5), (2, 7)):
        images = batch(n, size)
        counts, expected_counts = torch.zeros(2, n, 2, dtype=torch.int64)
        images[2][0, 0] = 0.0
        expected = two_steps(*images, expected_counts)
        assert torch.equal(compiled(*images, counts), expected)
        assert torch.equal(counts, expected_counts)
        assert counts[0, 0] == 2 * size * size


def test_shapes_without_memory():
    images = [t.to("meta") for t in batch()]
    got = pgd_step(*images, alpha=0.1, eps=0.1)
    assert got.is_meta
    assert got.shape == (3, 3, 5, 5)


def refused(error, match, **changes):
    x_adv, x, grad = batch()
    arguments = {"x_adv": x_adv, "x": x, "grad": grad, "alpha": 0.1, "eps": 0.1} | changes
    with pytest.raises(error, match=match):
        pgd_step(**arguments)


def test_what_it_refuses():
    refused(TypeError, "^x_adv .*float32.*bfloat16", x_adv=batch()[0].bfloat16())
    refused(TypeError, "^x .*x_adv.*dtype", x=batch()[1].double())
    refused(ValueError, r"^grad .*\[3, 3, 5, 5\].*\[3, 3, 5, 4\]", grad=torch.zeros(3, 3, 5, 4))
    refused(ValueError, "^grad .*cpu.*meta", grad=torch.zeros(3, 3, 5, 5, device="meta"))
    refused(ValueError, "^eps .*-0.1", eps=-0.1)
    refused(ValueError, "^alpha .*-0.1", alpha=-0.1)
    refused(ValueError, r"^eps .*\[3\].*\[2\]", eps=torch.zeros(2))
    refused(ValueError, r"^alpha .*\[3\].*\[3, 1\]", alpha=torch.zeros(3, 1))
    refused(TypeError, "^alpha .*float32.*int32", alpha=torch.zeros(3).int())
    refused(ValueError, "^alpha .*x_adv.*cpu.*meta", alpha=torch.zeros(3, device="meta"))
    refused(TypeError, "^grad .*float32.*int64", grad=batch()[2].long())
    none = torch.zeros(())
    refused(ValueError, r"^x_adv .*\[B, \.\.\.\]", x_adv=none, x=none, grad=none)
    refused(ValueError, "^lo .*hi.*1.0.*0.0", lo=1.0, hi=0.0)
    refused(ValueError, r"^counts .*int64 \[3, 2\]", counts=torch.zeros(3, 2))
    refused(ValueError, "^counts .*contiguous", counts=torch.zeros(2, 3).long().T)
    refused(RuntimeError, "^impl.*'triton'.*cpu", impl="triton")
    refused(ValueError, "^impl .*'cuda'", impl="cuda")


@pytest.mark.parametrize("name", ["x_adv", "x", "grad", "counts"])
def test_tensors_are_wanted(name):
    refused(TypeError, f"^{name} .*tensor.*list", **{name: [[0.1]]})
    if name != "counts":
        refused(TypeError, f"^{name} .*tensor.*NoneType", **{name: None})


@pytest.mark.parametrize("name", ["alpha", "eps", "lo", "hi"])
def test_numbers_are_wanted(name):
    refused(TypeError, f"^{name} .*number.*NoneType", **{name: None})
    refused(TypeError, f"^{name} .*number.*bool", **{name: True})
    refused(TypeError, f"^{name} .*number.*'4/255'", **{name: "4/255"})
    refused(ValueError, f"^{name} .*nan", **{name: float("nan")})


def test_infinite_settings():
    refused(ValueError, "^alpha .* inf", alpha=float("inf"))
    refused(TypeError, "^lo .*number.*tensor", lo=torch.zeros(()))
    x_adv, x, grad = batch()
    infinite = float("inf")
    got = pgd_step(x_adv, x, grad, alpha=0.1, eps=infinite, lo=-infinite, hi=infinite)
    torch.testing.assert_close(got, x_adv + 0.1 * grad.sign(), rtol=0, atol=1e-6)


def test_numbers_of_other_types():
    x_adv, x, grad = batch()
    expected = pgd_step(x_adv, x, grad, alpha=0.25, eps=0.5)
    got = pgd_step(x_adv, x, grad, alpha=np.float32(0.25), eps=Fraction(1, 2))
    assert torch.equal(got, expected)
    got = pgd_step(x_adv, x, grad, alpha=0.25, eps=0.5, lo=Fraction(0), hi=Fraction(1))
    assert torch.equal(got, expected)
    wide = torch.full((3,), 0.25, dtype=torch.float64)
    assert torch.equal(pgd_step(x_adv, x, grad, alpha=wide, eps=0.5), expected)
