"""What holds for each op that is differentiated: autocast, checkpoints, compiled plain code."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastprompt.kernels import (
    consistency_loss,
    layer_consistency,
    mixture_logits,
    prefix_attention,
)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + len(shape))
    return torch.randn(*shape, generator=generator).requires_grad_()


def mixture(image, text, router, **named):
    return mixture_logits(image, text, router, 10.0, **named)


def attention(q, k, v, prefix_k, prefix_v, **named):
    cu_seqlens = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
    return prefix_attention(q, k, v, prefix_k, prefix_v, cu_seqlens, **named)


def layers(a, b, c, d, **named):
    return layer_consistency([a, b], [c, d], **named)


def loss(adv, clean, frozen, **named):
    labels = torch.tensor([0, 3, 1])
    return consistency_loss(adv, clean, frozen, labels, alpha=0.3, detach_targets=False, **named)


OPS = {
    "mixture_logits": (mixture, [(3, 8), (2, 5, 8), (3, 2)]),
    "prefix_attention": (attention, [(1, 6, 2, 4)] * 3 + [(1, 3, 2, 4)] * 2),
    "layer_consistency": (layers, [(3, 4, 5), (3, 7)] * 2),
    "consistency_loss": (loss, [(3, 4)] * 3),
}


@pytest.fixture(params=OPS)
def op(request):
    function, shapes = OPS[request.param]
    return function, [random(*shape, seed=i) for i, shape in enumerate(shapes)]


def results(function, inputs):
    out = function(*inputs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def same(got, expected, **limits):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **limits)


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_autocast_changes_nothing(op, impl):
    function, inputs = op
    expected = results(function, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        same(results(lambda *i: function(*i, impl=impl), inputs), expected, rtol=0, atol=0)


def test_inside_of_a_checkpoint(op):
    function, inputs = op
    expected = results(function, inputs)
    got = results(lambda *i: checkpoint(function, *i, use_reentrant=False), inputs)
    same(got, expected, rtol=0, atol=0)


def test_plain_code_compiles_without_graph_breaks(op):
    function, inputs = op
    expected = results(function, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *i: function(*i, impl="torch"), fullgraph=True, dynamic=True)
    same(results(compiled, inputs), expected, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_is_refused_and_not_left_out(op):
    function, inputs = op
    first = torch.autograd.grad(function(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.square().sum() for g in first).backward()


def test_gradients_of_some_inputs_alone(op):
    function, inputs = op
    expected = results(function, inputs)[1:]
    for i, tensor in enumerate(inputs):
        alone = [t.detach() for t in inputs]
        alone[i] = tensor
        out = function(*alone)
        weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
        (got,) = torch.autograd.grad((out * weight).sum(), tensor)
        torch.testing.assert_close(got, expected[i], rtol=1e-6, atol=1e-7)
