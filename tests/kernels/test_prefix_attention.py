"""Prefix attention against its formula, its gradients, and what it refuses."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastprompt.kernels import prefix_attention, token_classes
from fastprompt.kernels.prefix_attention.groups import group
from fastprompt.kernels.prefix_attention.reference import prefix_attention as formula

SORTED, MIXED = [1, 2, 2, 4], [3, 1, 4, 1, 2, 3]
LENGTHS = pytest.mark.parametrize("lengths", [SORTED, MIXED, [1], [5]], ids=str)
LAST = pytest.mark.parametrize("last_only", [False, True], ids=["all", "last"])


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def inputs(lengths=MIXED, prompts=2, prefix=3, heads=2, d=4, last_only=False, **options):
    """q, k, v, prefix_k, prefix_v in float64, cu_seqlens."""
    gen = torch.Generator().manual_seed(0)
    cu_seqlens = starts(lengths)
    n, queries = sum(lengths), len(lengths) if last_only else sum(lengths)
    options = {"dtype": torch.float64} | options
    sizes = (queries, n, n, prefix, prefix)
    tensors = [torch.randn(prompts, s, heads, d, generator=gen, **options) for s in sizes]
    return [*tensors, cu_seqlens]


@LAST
@LENGTHS
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_equals_the_formula(lengths, prefix, last_only):
    given = inputs(lengths, prefix=prefix, last_only=last_only)
    got = prefix_attention(*given, last_only=last_only)
    torch.testing.assert_close(got, formula(*given, last_only), rtol=1e-12, atol=1e-13)


@LAST
@LENGTHS
@pytest.mark.parametrize("prefix", [0, 3])
def test_gradients_equal_those_of_the_formula(lengths, prefix, last_only):
    *tensors, cu_seqlens = inputs(lengths, prefix=prefix, last_only=last_only)
    tensors = [t.requires_grad_() for t in tensors]
    weight = torch.linspace(-1, 2, tensors[0].numel(), dtype=torch.float64).view_as(tensors[0])
    results = []
    for function in (prefix_attention, formula):
        out = function(*tensors, cu_seqlens, last_only=last_only)
        results.append(torch.autograd.grad((out * weight).sum(), tensors))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


@LAST
@pytest.mark.parametrize("lengths", [SORTED, MIXED], ids=["sorted", "mixed"])
def test_gradcheck(lengths, last_only):
    *tensors, cu_seqlens = inputs(lengths, prompts=1, heads=1, d=2, last_only=last_only)
    tensors = [t.requires_grad_() for t in tensors]
    function = functools.partial(prefix_attention, last_only=last_only, scale=0.7)
    assert torch.autograd.gradcheck(lambda *t: function(*t, cu_seqlens), tensors)


def test_scale_is_taken():
    given = inputs()
    got = prefix_attention(*given, scale=-0.3)
    torch.testing.assert_close(got, formula(*given, scale=-0.3), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("single", ["qkv", "prefix", "q"])
def test_one_prompt_broadcasts_and_its_gradient_is_summed(single):
    *tensors, cu_seqlens = inputs(prompts=3)
    alone = {"qkv": (0, 1, 2), "prefix": (3, 4), "q": (0,)}[single]
    given = [t[:1].clone() if i in alone else t for i, t in enumerate(tensors)]
    given = [t.requires_grad_() for t in given]
    copied = [t.detach().expand(3, -1, -1, -1).clone().requires_grad_() for t in given]
    out, wanted = prefix_attention(*given, cu_seqlens), prefix_attention(*copied, cu_seqlens)
    assert out.shape == wanted.shape == tensors[0].shape
    assert torch.equal(out, wanted)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    got = torch.autograd.grad((out * weight).sum(), given)
    grads = torch.autograd.grad((wanted * weight).sum(), copied)
    for i, (a, b) in enumerate(zip(got, grads, strict=True)):
        expected = b.sum(0, keepdim=True) if i in alone else b
        torch.testing.assert_close(a, expected, rtol=1e-12, atol=1e-12)


def test_the_last_queries_are_those_of_all():
    q, *rest, cu_seqlens = inputs()
    whole = prefix_attention(q, *rest, cu_seqlens)
    ends = cu_seqlens[1:].long() - 1
    last = prefix_attention(q[:, ends], *rest, cu_seqlens, last_only=True)
    torch.testing.assert_close(last, whole[:, ends], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 2)], ids=str)
def test_only_what_is_asked_for_is_computed(wanted):
    *tensors, cu_seqlens = inputs()
    for i, t in enumerate(tensors):
        t.requires_grad_(i in wanted)
    out = prefix_attention(*tensors, cu_seqlens)
    out.square().sum().backward()
    reached = [i for i, t in enumerate(tensors) if t.grad is not None]
    assert reached == list(wanted)
    everything = [t.detach().clone().requires_grad_() for t in tensors]
    prefix_attention(*everything, cu_seqlens).square().sum().backward()
    for i in wanted:
        torch.testing.assert_close(tensors[i].grad, everything[i].grad, rtol=1e-13, atol=1e-13)


def test_the_backward_op_leaves_out_what_is_not_needed():
    tensors, shapes = backward_arguments(False), []
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        got = torch.ops.fastprompt.prefix_attention_backward(*tensors, False, 0.5, *needed)
        shapes.append([t.numel() > 0 for t in got])
    on, off = True, False
    assert shapes == [[on, off, off, off, off], [off, on, on, off, off], [off, off, off, on, on]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_rounded_once(dtype):
    """Weights and sums are wider: the output is the exact one, rounded."""
    *tensors, cu_seqlens = inputs(d=16)
    low = [t.to(dtype) for t in tensors]
    got = prefix_attention(*low, cu_seqlens)
    exact = prefix_attention(*(t.double() for t in low), cu_seqlens)
    assert got.dtype == dtype
    half_a_step = torch.finfo(dtype).eps / 2 * exact.abs()
    sums = 64 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert ((got.double() - exact).abs() <= half_a_step + sums).all()


def test_large_scores_neither_overflow_nor_vanish():
    *tensors, cu_seqlens = inputs()
    tensors[0] *= 1e4
    tensors = [t.float().requires_grad_() for t in tensors]
    out = prefix_attention(*tensors, cu_seqlens)
    exact = prefix_attention(*(t.double() for t in tensors), cu_seqlens)
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_strides_do_not_matter():
    *tensors, cu_seqlens = inputs()
    expected = prefix_attention(*tensors, cu_seqlens)
    by_head = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    by_column = [t.transpose(1, 3).contiguous().transpose(1, 3) for t in tensors]
    for strided in (by_head, by_column):
        got = prefix_attention(*strided, cu_seqlens)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
        assert got.is_contiguous()


@LAST
def test_no_classes(last_only):
    *tensors, cu_seqlens = inputs([], last_only=last_only)
    tensors = [t.requires_grad_() for t in tensors]
    out = prefix_attention(*tensors, cu_seqlens, last_only=last_only)
    assert out.shape == tensors[0].shape
    out.sum().backward()
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in tensors)


def test_groups_of_a_sorted_list_are_slices():
    sizes = group(starts([1, 1, 3]), 5, last_only=False)
    assert sizes.tokens is None
    assert [(g.classes, g.length, g.tokens) for g in sizes.groups] == [
        (2, 1, slice(0, 2)),
        (1, 3, slice(2, 5)),
    ]
    # runs of one length each need no gathering either
    assert group(starts([3, 3, 1]), 7, last_only=True).tokens is None
    assert group(starts([1, 3, 1]), 5, last_only=True).tokens.tolist() == [0, 4, 1, 2, 3]


@LAST
@pytest.mark.parametrize("lengths", [SORTED, MIXED], ids=["sorted", "mixed"])
def test_opcheck(lengths, last_only):
    *tensors, cu_seqlens = inputs(lengths, last_only=last_only, dtype=torch.float32)
    forward = torch.ops.fastprompt.prefix_attention.default
    torch.library.opcheck(forward, (*tensors, cu_seqlens, None, last_only, 0.5))
    backward = torch.ops.fastprompt.prefix_attention_backward.default
    for needed in ((True, True, True), (False, True, False), (False, False, True)):
        torch.library.opcheck(backward, (*backward_arguments(last_only), last_only, 0.5, *needed))


def backward_arguments(last_only):
    *tensors, cu_seqlens = inputs(last_only=last_only, dtype=torch.float32)
    out, lse = torch.ops.fastprompt.prefix_attention(*tensors, cu_seqlens, None, last_only, 0.5)
    return (torch.ones_like(out), *tensors, cu_seqlens, None, out, lse)


@LAST
def test_whole_graph_of_any_size(last_only):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @functools.partial(torch.compile, backend=counter, fullgraph=True, dynamic=True)
    def compiled(cu_seqlens, *tensors):
        return prefix_attention(*tensors, cu_seqlens, last_only=last_only).square().sum()

    for lengths in (MIXED, [2, 2, 5, 7, 1], [4, 4, 4]):
        *tensors, cu_seqlens = inputs(lengths, prefix=len(lengths), last_only=last_only)
        tensors = [t.requires_grad_() for t in tensors]
        got = compiled(cu_seqlens, *tensors)
        grads = torch.autograd.grad(got, tensors)
        wanted = prefix_attention(*tensors, cu_seqlens, last_only=last_only).square().sum()
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
        for a, b in zip(grads, torch.autograd.grad(wanted, tensors), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@LAST
def test_shapes_without_memory(last_only):
    *tensors, cu_seqlens = inputs(last_only=last_only, dtype=torch.bfloat16)
    tensors = [t.to("meta").requires_grad_() for t in tensors]
    out = prefix_attention(*tensors, cu_seqlens.to("meta"), last_only=last_only)
    assert (out.shape, out.dtype, out.device.type) == (tensors[0].shape, torch.bfloat16, "meta")
    grads = torch.autograd.grad(out.sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


@LAST
def test_plain_code_is_what_runs_here(last_only):
    given = inputs(last_only=last_only)
    got = prefix_attention(*given, last_only=last_only, impl="torch")
    assert torch.equal(got, prefix_attention(*given, last_only=last_only))


def test_compiles_for_a_scale_that_changes():
    compiled = torch.compile(prefix_attention, fullgraph=True, dynamic=True)
    given = inputs()
    for scale in (0.1, 0.2, 0.3, 1):
        torch.testing.assert_close(
            compiled(*given, scale=scale), prefix_attention(*given, scale=scale)
        )


def test_differentiable_once():
    *tensors, cu_seqlens = inputs()
    tensors[0].requires_grad_()
    out = prefix_attention(*tensors, cu_seqlens)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


NAMES = ("q", "k", "v", "prefix_k", "prefix_v", "cu_seqlens")


def refused(error, match, last_only=False, scale=None, impl="auto", **changes):
    given = dict(zip(NAMES, inputs(), strict=True)) | changes
    with pytest.raises(error, match=match):
        prefix_attention(*given.values(), last_only=last_only, scale=scale, impl=impl)


def test_what_it_refuses():
    q, k, _, prefix_k, _, cu_seqlens = inputs()
    refused(TypeError, "^q .*float32.*int64", q=q.long())
    refused(TypeError, "^k .*dtype.*float64.*float32", k=k.float())
    refused(ValueError, r"^v .*\[K or 1, tokens, heads, d\].*\[14, 2, 4\]", v=k[0])
    refused(ValueError, r"^k .*\[2, 4\].*\[2, 3\]", k=k[..., :3])
    refused(ValueError, r"^prefix_v .*\[2, 4\].*\[1, 4\]", prefix_v=prefix_k[:, :, :1])
    refused(ValueError, "^v .*14 tokens.*13", v=k[:, 1:])
    refused(ValueError, "^prefix_v .*3 tokens.*2", prefix_v=prefix_k[:, 1:])
    refused(ValueError, "^q .*14.*token.*6", q=q[:, :6])
    refused(ValueError, "^q .*6 .*class.*14", last_only=True)
    refused(ValueError, "^q, k.*{'q': 3, 'k': 2", q=q[:1].expand(3, -1, -1, -1))
    flat = dict.fromkeys(NAMES[:3], q[..., :0]) | dict.fromkeys(NAMES[3:5], prefix_k[..., :0])
    refused(ValueError, "^q .*width", **flat)
    refused(ValueError, "^k .*cpu.*meta", k=k.to("meta"))
    refused(ValueError, "^cu_seqlens .*cpu.*meta", cu_seqlens=cu_seqlens.to("meta"))
    refused(TypeError, "^cu_seqlens .*int32.*int64", cu_seqlens=cu_seqlens.long())
    refused(ValueError, r"^cu_seqlens .*\[classes \+ 1\]", cu_seqlens=cu_seqlens[:0])
    refused(ValueError, r"^cu_seqlens .*\[classes \+ 1\]", cu_seqlens=cu_seqlens[None])
    refused(ValueError, "^scale .* inf", scale=float("inf"))
    refused(ValueError, "^scale .* nan", scale=float("nan"))
    refused(TypeError, "^scale .*number.*'1/8'", scale="1/8")
    refused(TypeError, "^scale .*tensor.*multiply q", scale=torch.ones(()))
    refused(ValueError, r"^k .*\[0, 14, 2, 4\]", k=k[:0])
    none = {n: t[:0] for n, t in zip(NAMES[:5], inputs()[:5], strict=True)}
    refused(ValueError, r"^q .*\[0, 14, 2, 4\]", **none)
    flat = {n: t[:, :, :0] for n, t in zip(NAMES[:5], inputs()[:5], strict=True)}
    refused(ValueError, "^q .*head", **flat)
    refused(RuntimeError, "^impl.*'triton'.*float64", impl="triton")
    refused(ValueError, "^impl .*'cuda'", impl="cuda")
    single = {n: t.float() for n, t in zip(NAMES[:5], inputs()[:5], strict=True)}
    refused(RuntimeError, "^impl.*'triton'.*cpu", impl="triton", **single)
    wide = {n: t.repeat(1, 1, 1, 33) for n, t in single.items()}
    refused(ValueError, "^q.*128.*132", impl="triton", **wide)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, [0, 1]])
def test_tensors_are_wanted(name, value):
    refused(TypeError, f"^{name} .*tensor.*{type(value).__name__}", **{name: value})


@pytest.mark.parametrize("wrong", [[1, 7, 14], [0, 7, 13], [0, 7, 7, 14], [0, 9, 5, 14]], ids=str)
def test_lengths_are_checked_on_the_cpu(wrong):
    lengths = torch.tensor(wrong, dtype=torch.int32)
    refused(ValueError, rf"^cu_seqlens .*14 tokens.*\{wrong}", cu_seqlens=lengths)
    *tensors, _ = inputs()
    with pytest.raises(ValueError, match=r"^cu_seqlens .*\[0, 1, 2\] \.\.\. \[8, 9, 10\]"):
        prefix_attention(*tensors, torch.arange(11, dtype=torch.int32))


def test_classes_of_tokens():
    starts = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
    assert token_classes(starts, 6).tolist() == [0, 0, 1, 2, 2, 2]
    assert token_classes(starts, 6).dtype == torch.int32
    assert token_classes(starts[:1], 0).shape == (0,)


@pytest.mark.parametrize(
    ("classes", "error", "says"),
    [
        (torch.zeros(6, dtype=torch.int64), TypeError, "classes must be int32"),
        (torch.zeros(5, dtype=torch.int32), ValueError, r"classes must be \[6\]"),
        ([0] * 6, TypeError, "classes must be a tensor"),
    ],
)
def test_wrong_classes(classes, error, says):
    tokens, prefix = torch.zeros(1, 6, 2, 4), torch.zeros(1, 3, 2, 4)
    starts = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
    with pytest.raises(error, match=says):
        prefix_attention(tokens, tokens, tokens, prefix, prefix, starts, classes=classes)
