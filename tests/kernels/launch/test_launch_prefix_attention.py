"""Prefix attention's kernels against the plain code in float64, forward and every gradient."""

import pytest
import torch
from helpers.kernel_place import (
    DEVICE,
    DTYPE_IDS,
    DTYPES,
    EPSILON,
    INTERPRETED,
    MARKS,
    strided,
    worst,
)

from fastprompt.kernels import prefix_attention, token_classes
from fastprompt.kernels.prefix_attention.reference import prefix_attention as formula

pytestmark = MARKS

NAMES = ("out", "dq", "dk", "dv", "dprefix_k", "dprefix_v")
LAST = pytest.mark.parametrize("last_only", [False, True], ids=["all", "last"])
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
# one very long class among short ones; tiles end inside classes, classes inside tiles
UNEVEN = [3, 1, 5, 60, 2, 4, 8, 1]


def inputs(lengths, dtype, prefix=5, prompts=1, heads=1, d=16, last_only=False, q_scale=1.0):
    """q, k, v, prefix_k, prefix_v, and cu_seqlens."""
    gen = torch.Generator().manual_seed(sum(lengths) + prefix)
    n = sum(lengths)
    sizes = (len(lengths) if last_only else n, n, n, prefix, prefix)
    tensors = [torch.randn(prompts, s, heads, d, generator=gen, dtype=torch.float64) for s in sizes]
    tensors[0] *= q_scale
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return [t.to(dtype).to(DEVICE) for t in tensors], starts.to(DEVICE)


def weights_like(out):
    gen = torch.Generator().manual_seed(9)
    return torch.randn(out.shape, generator=gen, dtype=torch.float64).to(out)


def run(tensors, starts, impl="triton", **options):
    """The output and all gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = prefix_attention(*leaves, starts, impl=impl, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, weights_like(out))


def run_formula(tensors, starts, **options):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = formula(*leaves, starts, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, weights_like(out))


def assert_as_good_as_the_formula(tensors, starts, **options):
    """Errors against float64 are about the formula's in the same precision.

    In the norm at most twice as large, at the worst entry, which depends more on the order of
    summation, three times. Two steps of the dtype are given besides: where the formula happens to
    be exact, and as what the interpreter stores in bfloat16 is cut off, not rounded.
    """
    dtype = tensors[0].dtype
    exact = run_formula([t.double() for t in tensors], starts, **options)
    low = run_formula(tensors, starts, **options)
    got = run(tensors, starts, **options)
    for name, g, reference, other in zip(NAMES, got, exact, low, strict=True):
        assert g.dtype == dtype
        assert g.shape == reference.shape, name
        assert g.isfinite().all(), name
        allowed = 3 * worst(other, reference) + 2 * EPSILON[dtype]
        assert worst(g, reference) <= allowed, f"{name}: {worst(g, reference)} > {allowed}"
        found, plain = (float((t.double() - reference).norm()) for t in (g, other))
        limit = 2 * (plain + EPSILON[dtype] * float(reference.norm()))
        assert found <= limit, f"{name} in the norm: {found} > {limit}"


@DTYPE
@LAST
def test_uneven_classes(dtype, last_only):
    tensors, starts = inputs(UNEVEN, dtype, prompts=2, heads=2, last_only=last_only)
    assert_as_good_as_the_formula(tensors, starts, last_only=last_only)


@LAST
def test_uneven_classes_without_a_prefix(last_only):
    """A tile's first block of keys holds none that its last queries see."""
    tensors, starts = inputs(UNEVEN, torch.float32, prefix=0, last_only=last_only)
    assert_as_good_as_the_formula(tensors, starts, last_only=last_only)


@LAST
@pytest.mark.parametrize("tokens", [1, 3, 63, 127])
def test_sizes(tokens, last_only):
    """Classes of 1, 2, 3, 1, ... tokens, up to that many in all."""
    lengths = []
    while sum(lengths) < tokens:
        lengths.append(min(len(lengths) % 3 + 1, tokens - sum(lengths)))
    tensors, starts = inputs(lengths, torch.float32, last_only=last_only)
    assert_as_good_as_the_formula(tensors, starts, last_only=last_only)


@pytest.mark.parametrize("prefix", [0, 1, 17, 33, 77])
def test_prefixes(prefix):
    tensors, starts = inputs([2, 3, 1, 7], torch.float32, prefix=prefix)
    assert_as_good_as_the_formula(tensors, starts)
    tensors, starts = inputs([2, 3, 1, 7], torch.float16, prefix=prefix, last_only=True)
    assert_as_good_as_the_formula(tensors, starts, last_only=True)


@pytest.mark.parametrize("d", [8, 24, 64, 80, 128])
def test_widths(d):
    tensors, starts = inputs([2, 30, 1], torch.float32, d=d)
    assert_as_good_as_the_formula(tensors, starts)
    tensors, starts = inputs([2, 30, 1], torch.bfloat16, d=d, last_only=True)
    assert_as_good_as_the_formula(tensors, starts, last_only=True)


def test_one_long_class():
    tensors, starts = inputs([130], torch.float32)
    assert_as_good_as_the_formula(tensors, starts)


def test_many_chunks_of_queries():
    """More tiles of queries than the prefix's gradient is dealt out to."""
    tensors, starts = inputs([5] * 230, torch.float32, prefix=3)
    exact = run([t.double() for t in tensors], starts, "torch")
    for got, wanted in zip(run(tensors, starts), exact, strict=True):
        # sums of a thousand products: a few steps
        assert worst(got, wanted) < 64 * EPSILON[torch.float32]


def test_several_prompts_and_heads_stand_alone():
    tensors, starts = inputs([3, 2, 5], torch.float32, prompts=2, heads=3)
    together = run(tensors, starts)
    for prompt in range(2):
        alone = run([t[prompt : prompt + 1] for t in tensors], starts)[0]
        assert torch.equal(together[0][prompt : prompt + 1], alone)
    assert_as_good_as_the_formula(tensors, starts)


@pytest.mark.parametrize("single", [(0, 1, 2), (3, 4)], ids=["qkv", "prefix"])
def test_an_expanded_prompt(single):
    tensors, starts = inputs([3, 2, 5], torch.float32, prompts=3, heads=2)
    tensors = [t[:1] if i in single else t for i, t in enumerate(tensors)]
    exact = run([t.double() for t in tensors], starts, "torch")
    for name, got, wanted in zip(NAMES, run(tensors, starts), exact, strict=True):
        assert got.shape == wanted.shape
        assert worst(got, wanted) < 16 * EPSILON[torch.float32], name


@LAST
def test_scale(last_only):
    tensors, starts = inputs([3, 2, 5], torch.float32, last_only=last_only)
    assert_as_good_as_the_formula(tensors, starts, last_only=last_only, scale=-0.3)


@LAST
def test_views_of_one_projection_and_gaps(last_only):
    (q, k, v, prefix_k, prefix_v), starts = inputs([3, 2, 5], torch.float32, heads=2, prompts=2)
    _, k, v = torch.stack([k, k, v], dim=2).unbind(2)
    q = q[:, starts[1:].long() - 1] if last_only else q
    prefix_k = prefix_k.transpose(1, 2).contiguous().transpose(1, 2)
    views = (q.transpose(0, 1).contiguous().transpose(0, 1), k, v, prefix_k, prefix_v)
    dense = run([t.contiguous() for t in views], starts, last_only=last_only)
    for tensors in (views, [strided(t) for t in views]):
        got = run(tensors, starts, last_only=last_only)
        assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


def test_gradients_with_any_strides():
    tensors, starts = inputs([3, 2, 5], torch.float32, heads=2, prompts=2)
    leaves = [t.requires_grad_() for t in tensors]
    out = prefix_attention(*leaves, starts, impl="triton")
    weights = weights_like(out)
    dense = torch.autograd.grad(out, leaves, weights, retain_graph=True)
    for other in (strided(weights), weights.transpose(1, 2).contiguous().transpose(1, 2)):
        got = torch.autograd.grad(out, leaves, other, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


@LAST
def test_no_class(last_only):
    tensors, starts = inputs([], dtype=torch.float32, last_only=last_only)
    out, *grads = run(tensors, starts, last_only=last_only)
    assert out.shape == tensors[0].shape
    for grad, tensor in zip(grads, tensors, strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@DTYPE
def test_scores_of_ten_thousand(dtype):
    """Softmax is all or nothing there; the weights neither overflow nor lose a row.

    A score has as many digits as the sums' logarithm in float32: weights are wrong by a step of
    their size.
    """
    tensors, starts = inputs(UNEVEN, dtype, q_scale=4e3)
    q, k, v = tensors[:3]
    exact = run([t.double() for t in tensors], starts, "torch")
    scores = torch.einsum("mhd,nhd->hmn", q[0].double(), k[0].double()) / q.shape[-1] ** 0.5
    largest = float(scores.abs().max())
    assert largest > 1e4
    slack = 2 * largest * EPSILON[torch.float32] + 2 * EPSILON[dtype]
    dout = weights_like(exact[0]).abs().max()
    # what single weights of 1 give; a key's gradient sums over the queries
    ds = dout * v.abs().max() * q.shape[-1]
    bounds = {"out": v.abs().max(), "dq": ds * k.abs().max(), "dv": dout * q.shape[1]}
    bounds |= {"dk": ds * q.abs().max() * q.shape[1]}
    bounds |= {"dprefix_k": bounds["dk"], "dprefix_v": bounds["dv"]}
    for name, got, wanted in zip(NAMES, run(tensors, starts), exact, strict=True):
        assert (got.double() - wanted).abs().max() <= slack * bounds[name].double(), name


def test_zeros_and_equal_scores():
    tensors, starts = inputs(UNEVEN, torch.float32)
    tensors[0] *= 0
    assert_as_good_as_the_formula(tensors, starts)


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 4), (2, 3)], ids=str)
def test_only_what_is_asked_for(wanted):
    tensors, starts = inputs([3, 2, 5], torch.float32)
    everything = run(tensors, starts)[1:]
    leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    out = prefix_attention(*leaves, starts, impl="triton")
    got = torch.autograd.grad(out, [leaves[i] for i in wanted], weights_like(out))
    assert all(torch.equal(g, everything[i]) for g, i in zip(got, wanted, strict=True))


@LAST
def test_classes_computed_before(last_only):
    tensors, starts = inputs(UNEVEN, torch.float32, last_only=last_only)
    classes = token_classes(starts, sum(UNEVEN))
    given = run(tensors, starts, last_only=last_only, classes=classes)
    for got, wanted in zip(given, run(tensors, starts, last_only=last_only), strict=True):
        assert torch.equal(got, wanted)


@DTYPE
def test_two_runs_same_bits(dtype):
    tensors, starts = inputs(UNEVEN, dtype, prompts=2)
    first, second = run(tensors, starts), run(tensors, starts)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if not INTERPRETED:

    @LAST
    def test_captured_and_replayed(last_only):
        tensors, starts = inputs(UNEVEN, torch.float32, heads=2, last_only=last_only)
        run(tensors, starts, last_only=last_only)  # compiled before
        graph = torch.cuda.CUDAGraph()
        leaves = [t.clone().requires_grad_() for t in tensors]
        weights = weights_like(tensors[0])
        with torch.cuda.graph(graph):
            out = prefix_attention(*leaves, starts, last_only=last_only, impl="triton")
            grads = torch.autograd.grad(out, leaves, weights)
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_(0.5)
        graph.replay()
        wanted = run([0.5 * t for t in tensors], starts, last_only=last_only)
        for a, b in zip((out, *grads), wanted, strict=True):
            assert torch.equal(a, b)
