"""Cosine distance over layers against its formula, its digits, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastprompt.kernels import layer_consistency
from fastprompt.kernels.layer_consistency.reference import layer_consistency as formula

SHAPES = [(5, 4), (3, 4), (6,)]


def layers(n=3, dtype=torch.float64, seed=0, shapes=SHAPES, apart=1.0):
    gen = torch.Generator().manual_seed(seed)
    a = [torch.randn(n, *s, generator=gen, dtype=torch.float64) for s in shapes]
    b = [x + apart * torch.randn(x.shape, generator=gen, dtype=torch.float64) for x in a]
    return [x.to(dtype) for x in a], [x.to(dtype) for x in b]


def learning(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def gradients(a, b, weight, **named):
    a, b = learning(a), learning(b)
    return torch.autograd.grad((layer_consistency(a, b, **named) * weight).sum(), [*a, *b])


def test_equals_the_formula():
    a, b = layers()
    torch.testing.assert_close(layer_consistency(a, b), formula(a, b), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("ratio", [1e-3, 0.3, 0.38, 0.39, 1.0, 2.6, 2.7, 1e3])
def test_norms_that_differ(ratio):
    # both sides of where another formula takes over
    a, b = layers()
    b = [y * ratio for y in b]
    torch.testing.assert_close(layer_consistency(a, b), formula(a, b), rtol=1e-12, atol=1e-12)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x, y = learning(a), learning(b)
    expected = torch.autograd.grad((formula(x, y) * weight).sum(), [*x, *y])
    for got, want in zip(gradients(a, b, weight), expected, strict=True):
        assert (got - want).norm() <= 1e-12 * want.norm()


def test_opposite_and_orthogonal_vectors():
    a = [torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)]
    b = [torch.tensor([[0.0, 2.0], [-6.0, -8.0]], dtype=torch.float64)]
    assert layer_consistency(a, b).tolist() == pytest.approx([1.0, 2.0], abs=1e-15)


def test_gradcheck():
    a, b = (learning(t) for t in layers())
    assert torch.autograd.gradcheck(
        lambda *t: layer_consistency(t[:3], t[3:]), (*a, *b), atol=1e-8, rtol=1e-6
    )


@pytest.mark.parametrize("rank", [3, 4])
def test_a_stack_equals_a_list(rank):
    shapes = [(5, 4)[: rank - 2]] * 4
    a, b = layers(shapes=shapes)
    stacks = torch.stack(a).requires_grad_(), torch.stack(b).requires_grad_()
    value = layer_consistency(*stacks)
    assert value.shape == (3,)
    torch.testing.assert_close(value, layer_consistency(a, b), rtol=1e-14, atol=0)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    got = torch.autograd.grad((value * weight).sum(), stacks)
    expected = gradients(a, b, weight)
    for side, grad in enumerate(got):
        torch.testing.assert_close(grad, torch.stack(expected[4 * side :][:4]))


def exact_angle(n, size, angle, stretch=1.0, seed=0):
    """Float32 rows at about an angle, whose norms differ by a factor, and their exact distance."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, size, generator=gen, dtype=torch.float64)
    side = torch.randn(n, size, generator=gen, dtype=torch.float64)
    side -= x * (side * x).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True)
    y = x * math.cos(angle) + side * (x.norm(dim=1) / side.norm(dim=1))[:, None] * math.sin(angle)
    x, y = x.float(), (stretch * y).float()
    # half the squared distance of unit vectors is 1 - cos without a difference of large numbers
    units = [F.normalize(t.double(), dim=1) for t in (x, y)]
    return x, y, (units[0] - units[1]).square().sum(dim=1) / 2


@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4, 1e-5])
def test_keeps_its_digits_near_zero(angle):
    x, y, exact = exact_angle(4, 512, angle)
    error = (layer_consistency([x], [y]).double() - exact).abs() / exact
    assert error.max() <= 2e-6
    if angle <= 1e-3:
        assert ((formula([x], [y]).double() - exact).abs() / exact).max() > 1e-3


@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4])
def test_gradients_keep_their_digits_near_zero(angle):
    x, y, _ = exact_angle(4, 512, angle)
    a, b = learning([x.double(), y.double()])
    exact = torch.autograd.grad(formula([a], [b]).sum(), (a, b))
    for got, want in zip(gradients([x], [y], 1.0), exact, strict=True):
        assert (got - want).norm() <= 2e-6 * want.norm()


@pytest.mark.parametrize("stretch", [1.01, 1.5, 3.0, 100.0])
@pytest.mark.parametrize("angle", [1e-2, 1e-3])
def test_what_is_lost_where_the_norms_differ(stretch, angle):
    x, y, exact = exact_angle(4, 512, angle, stretch)
    bound = 4e-7 * min(1.0, (stretch - 1) ** 2 / (2 * stretch)) + 2e-6 * exact
    assert ((layer_consistency([x], [y]).double() - exact).abs() <= bound).all()


def test_zero_vectors_have_distance_one_and_no_gradient():
    a, b = layers()
    a[0][0], b[1][1] = 0.0, 0.0
    a[2][2], b[2][2] = 0.0, 0.0
    torch.testing.assert_close(layer_consistency(a, b), formula(a, b), rtol=1e-13, atol=0)
    grads = gradients(a, b, 1.0)
    for layer, sample in ((0, 0), (1, 1), (2, 2)):
        assert not grads[layer][sample].any()
        assert not grads[3 + layer][sample].any()
        assert grads[layer][sample - 1].any()


def test_equal_inputs_give_exactly_zero():
    a, _ = layers(dtype=torch.float32)
    assert not layer_consistency(a, a).any()
    assert not any(g.any() for g in gradients(a, a, 1.0))


def test_a_nan_stays_in_its_sample():
    a, b = layers(dtype=torch.float32)
    a[1][1, 0, 0] = float("nan")
    assert layer_consistency(a, b).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype):
    a, b = layers(dtype=dtype)
    value = layer_consistency(a, b)
    assert value.dtype == torch.float32
    exact = layer_consistency([x.double() for x in a], [y.double() for y in b])
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=0)
    assert [g.dtype for g in gradients(a, b, 1.0)] == [dtype] * 6


def test_large_float16_does_not_overflow():
    a, b = layers(dtype=torch.float16)
    big = [x * 10_000 for x in a], [y * 10_000 for y in b]
    torch.testing.assert_close(layer_consistency(*big), layer_consistency(a, b), rtol=1e-2, atol=0)


def test_only_what_learns_gets_a_gradient():
    a, b = layers()
    a[1].requires_grad_()
    b[2].requires_grad_()
    layer_consistency(a, b).sum().backward()
    full = gradients(a, b, 1.0)
    torch.testing.assert_close(a[1].grad, full[1])
    torch.testing.assert_close(b[2].grad, full[5])
    assert a[0].grad is None
    assert not layer_consistency(a[:1], b[:1]).requires_grad


def test_inputs_are_left_alone():
    a, b = layers()
    before = [t.clone() for t in (*a, *b)]
    gradients(a, b, 1.0)
    assert all(torch.equal(t, u) for t, u in zip(before, (*a, *b), strict=True))


def test_empty_batch_and_empty_layers():
    a, b = layers(n=0)
    assert layer_consistency(a, b).shape == (0,)
    assert [g.shape for g in gradients(a, b, 1.0)] == [t.shape for t in (*a, *b)]
    assert layer_consistency(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3)).shape == (0,)
    nothing = torch.zeros(2, 0)
    assert layer_consistency([nothing], [nothing]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_any_order_of_memory(impl):
    a, b = layers(shapes=[(4, 3, 2)] * 2)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = gradients(a, b, weight)
    last = [t.to(memory_format=torch.channels_last) for t in a]
    swapped = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in b]
    torch.testing.assert_close(layer_consistency(last, swapped, impl=impl), layer_consistency(a, b))
    for got, want in zip(gradients(last, swapped, weight, impl=impl), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_impl_torch_is_auto_on_a_cpu():
    a, b = layers(dtype=torch.float32)
    assert torch.equal(layer_consistency(a, b, impl="torch"), layer_consistency(a, b))
    both = gradients(a, b, 1.0, impl="torch"), gradients(a, b, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(*both, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    a, b = layers(dtype=dtype, shapes=[(4, 3, 2), (5,)])
    a[0] = a[0].to(memory_format=torch.channels_last)
    ops = torch.ops.fastprompt
    value, norms = ops.layer_consistency(a, b, 3)
    torch.library.opcheck(ops.layer_consistency.default, (a, b, 3))
    wanted = [True, False, True, True]
    torch.library.opcheck(ops.layer_consistency_backward.default, (value, norms, a, b, wanted))


def test_compiles_without_graph_breaks():
    compiled = torch.compile(layer_consistency, fullgraph=True, dynamic=True)
    for n, tokens in ((3, 5), (4, 7)):
        a, b = (learning(t) for t in layers(n, torch.float32, shapes=[(tokens, 4), (6,)]))
        b[1].requires_grad_(False)
        inputs = [*a, b[0]]
        torch.testing.assert_close(compiled(a, b), layer_consistency(a, b))
        pairs = [
            torch.autograd.grad(f(a, b).square().sum(), inputs)
            for f in (compiled, layer_consistency)
        ]
        for got, want in zip(*pairs, strict=True):
            torch.testing.assert_close(got, want)


def test_a_stack_compiles():
    compiled = torch.compile(layer_consistency, fullgraph=True, dynamic=True)
    for n in (3, 4):
        a, b = (
            torch.stack(t).requires_grad_() for t in layers(n, torch.float32, shapes=[(5,)] * 4)
        )
        pairs = [
            torch.autograd.grad(f(a, b).square().sum(), (a, b))
            for f in (compiled, layer_consistency)
        ]
        for got, want in zip(*pairs, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_meta_tensors(dtype):
    a, b = (learning(x.to("meta") for x in t) for t in layers(dtype=dtype))
    value = layer_consistency(a, b)
    assert value.shape == (3,)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    grads = torch.autograd.grad(value.sum(), [*a, *b])
    assert [g.shape for g in grads] == [t.shape for t in (*a, *b)]
    assert {g.dtype for g in grads} == {dtype}


def refused(error, match, a, b, **named):
    with pytest.raises(error, match=match):
        layer_consistency(a, b, **named)


def test_what_it_refuses():
    a, b = layers(dtype=torch.float32)
    refused(ValueError, "^a .*empty list", [], [])
    refused(ValueError, r"^a .*\[0, 2, 3\]", torch.zeros(0, 2, 3), torch.zeros(0, 2, 3))
    refused(ValueError, r"^a .*\[L, B, \.\.\.\].*list", a[0][0], b[0][0])
    refused(TypeError, "^a and b .*lists.*stacked", torch.stack([a[0]]), [b[0]])
    refused(TypeError, "^a .*list.*dict", {}, b)
    refused(TypeError, "^b .*list.*NoneType", a, None)
    refused(TypeError, r"^a\[0\] .*tensor.*NoneType", [None, *a[1:]], b)
    refused(TypeError, r"^b\[1\] .*tensor.*int", a, [b[0], 3, b[2]])
    refused(ValueError, "^b .* a.* 3.* 2", a, b[:2])
    refused(ValueError, r"^a\[0\] .*\[B, \.\.\.\]", [torch.zeros(3)], [torch.zeros(3)])
    refused(ValueError, r"^a\[1\] .*a\[0\].* 3.* 2", [a[0], a[1][:2]], b[:2])
    refused(ValueError, r"^b\[2\] .*a\[2\].*\[3, 6\]", a, [b[0], b[1], b[2][:, :5]])
    refused(TypeError, r"^a\[0\] .*float32.*int64", [t.long() for t in a], [t.long() for t in b])
    refused(TypeError, r"^a\[1\] .*a\[0\].*dtype", [a[0], a[1].half(), a[2]], b)
    refused(TypeError, r"^b\[1\] .*a\[1\].*dtype", a, [b[0], b[1].half(), b[2]])
    refused(ValueError, r"^b\[1\] .*a\[1\].*cpu.*meta", a, [b[0], b[1].to("meta"), b[2]])
    refused(RuntimeError, "^impl.*'triton'.*cpu", a, b, impl="triton")
    refused(ValueError, "^impl .*'cuda'", a, b, impl="cuda")
