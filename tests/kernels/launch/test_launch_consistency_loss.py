"""The kernels of CAPT's loss against the plain code in float64."""

import itertools

import pytest
import torch
from helpers.kernel_place import DEVICE, DTYPE_IDS, DTYPES, EPSILON, INTERPRETED, MARKS, strided

from fastprompt.kernels import consistency_loss
from fastprompt.kernels.consistency_loss import eager
from fastprompt.kernels.consistency_loss.arguments import Loss

pytestmark = MARKS

INF = float("inf")
FP32 = EPSILON[torch.float32]
OPTIONS = [
    {"ce": ce, "train_kl": train, "frozen_kl": far, "detach_targets": detach}
    for ce, train, far, detach in itertools.product(
        ("adv", "clean"), ("adv||target", "target||adv"), ("adv||target", "target||adv"), (0, 1)
    )
]


def name_of(options):
    return "-".join(str(v) for v in options.values())


def batch(n=3, classes=7, dtype=torch.float32, seed=0, scale=2.0):
    gen = torch.Generator().manual_seed(seed)
    logits = [(scale * torch.randn(n, classes, generator=gen)).to(dtype) for _ in range(3)]
    labels = torch.randint(classes, (n,), generator=gen)
    return *(t.to(DEVICE) for t in logits), labels.to(DEVICE)


def run(logits, labels, impl, **named):
    """Loss, terms, gradients; zeros for a gradient that doesn't arrive."""
    named = {"alpha": 0.3, "lam": 1.7, **named}
    logits = [t.detach().requires_grad_() for t in logits]
    loss, terms = consistency_loss(*logits, labels, impl=impl, return_terms=True, **named)
    weight = weights(loss)
    found = torch.autograd.grad(loss, logits, weight, allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for g, t in zip(found, logits, strict=True)]
    return loss.detach(), terms, grads


def weights(loss):
    return torch.linspace(-1.5, 2.0, len(loss), device=DEVICE).to(loss.dtype)


def check(logits, labels, **named):
    """Within some roundings of 1 or of the largest term, and of one store."""
    loss, terms, grads = run(logits, labels, "triton", **named)
    exact, exact_terms, exact_grads = run([t.double() for t in logits], labels, "torch", **named)
    assert loss.dtype == terms.dtype == torch.float32
    size = 1 + exact_terms.sum(dim=1)
    assert ((loss - exact).abs() <= 8 * FP32 * size).all()
    assert ((terms - exact_terms).abs() <= 8 * FP32 * size[:, None]).all()
    assert (terms[:, 1:] >= 0).all()
    for got, want, like in zip(grads, exact_grads, logits, strict=True):
        assert got.dtype == like.dtype
        assert got.shape == like.shape
        low = EPSILON[like.dtype] * (like.dtype != torch.float32)
        fixed = 6e-8 * (like.dtype == torch.float16)  # its smallest number
        tolerance = 16 * FP32 * (weights(loss).abs() * size)[:, None] + low * want.abs() + fixed
        assert ((got.double() - want).abs() <= tolerance).all()


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_options(options):
    check(*split(batch()), **options)


def split(inputs):
    *logits, labels = inputs
    return logits, labels


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("classes", [1, 3, 63, 127, 1000, 2 * 2048 + 5])
def test_sizes(classes, dtype):
    check(*split(batch(2, classes, dtype)), detach_targets=False, frozen_kl="target||adv")


def walks():
    """Rows of three blocks in which the largest logit comes in each of them, or doesn't come."""
    x, y, z, labels = batch(4, 2 * 2048 + 5, scale=1.0)
    rising = torch.linspace(0, 30, x.shape[1], device=DEVICE)
    yield "rising", [x + rising, y + rising, z + rising], labels
    yield "falling", [x - rising, y - rising, z - rising], labels
    yield "crossing", [x + rising, y - rising, z], labels
    x, y, z = x.clone(), y.clone(), z.clone()
    for t in (x, y, z):
        t[:, :2048] = -INF
    yield "first block masked", [x, y, z], labels % 100 + 2048
    x, y, z, labels = batch(4, 2 * 2048 + 5, scale=1.0)
    for t in (x, y, z):
        t[:, 4096:] = -INF
    yield "last block masked", [x, y, z], labels % 4096
    x, y, z, labels = batch(4, 2 * 2048 + 5, scale=1.0)
    x[:, :3000] = -INF
    x[:, 4096:] += 200
    yield "nothing of adv in the first block, all in the last", [x, y, z], labels % 100 + 4000


@pytest.mark.parametrize("reversed_", [False, True])
@pytest.mark.parametrize("which", range(6))
def test_largest_logits_anywhere(which, reversed_):
    _, logits, labels = list(walks())[which]
    direction = "target||adv" if reversed_ else "adv||target"
    if which == 5 and reversed_:
        logits = [logits[1], logits[0], logits[0] - 1]
    check(logits, labels, train_kl=direction, frozen_kl=direction, detach_targets=False)


@pytest.mark.parametrize("classes", [7, 2500])
@pytest.mark.parametrize("options", OPTIONS[::5], ids=name_of)
def test_logits_of_ten_thousand(options, classes):
    check(*split(batch(classes=classes, scale=1e4)), **options)


@pytest.mark.parametrize("options", OPTIONS[::2], ids=name_of)
def test_an_offset_changes_nothing(options):
    *logits, labels = batch(classes=2500, scale=4.0)
    logits = [(t * 16).round() / 16 for t in logits]
    far = [t + offset for t, offset in zip(logits, (1e4, -2e4, 3e4), strict=True)]
    near, moved = (run(t, labels, "triton", **options) for t in (logits, far))
    torch.testing.assert_close(near[0], moved[0], rtol=1e-6, atol=1e-6)
    for got, want in zip(moved[2], near[2], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def same_where_not_finite(got, want):
    """NaN and infinities in the same places; elsewhere within rounding."""
    got = got.double()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())
    finite = want.isfinite()
    torch.testing.assert_close(got[finite], want[finite], rtol=1e-5, atol=1e-5)
    assert torch.equal(got[want.isinf()] > 0, want[want.isinf()] > 0)


def infinite(kind, classes):
    *logits, labels = batch(4, classes)
    x, y, z = logits
    labels[:] = 2
    if kind == "masked in all":
        for t in logits:
            t[:2, 3:] = -INF
    elif kind == "masked in clean":
        y[1, 3] = -INF
    elif kind == "masked in adv":
        x[1, 3:5] = -INF
    elif kind == "masked label":
        x[1, 2], y[2, 2] = -INF, -INF
    elif kind == "masked rows":
        x[0], y[1], z[2] = -INF, -INF, -INF
    elif kind == "infinite":
        x[0, 3], y[1, 3], z[2, 3] = INF, INF, INF
    else:
        x[0, 3], y[1, 3], z[2, 3] = (float("nan"),) * 3
    return logits, labels


KINDS = ("masked in all", "masked in clean", "masked in adv", "masked label", "masked rows",
         "infinite", "nan")  # fmt: skip


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[6], OPTIONS[10]], ids=name_of)
@pytest.mark.parametrize("classes", [7, 2500])
@pytest.mark.parametrize("kind", KINDS)
def test_not_finite(kind, classes, options):
    logits, labels = infinite(kind, classes)
    loss, terms, grads = run(logits, labels, "triton", **options)
    exact, exact_terms, exact_grads = run([t.double() for t in logits], labels, "torch", **options)
    same_where_not_finite(loss, exact)
    same_where_not_finite(terms, exact_terms)
    for got, want in zip(grads, exact_grads, strict=True):
        same_where_not_finite(got, want)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("reversed_", [False, True])
def test_a_probability_that_underflows_counts_as_zero(reversed_, block):
    x, y, _, labels = batch(classes=2 * 2048 + 5)
    first, second = (y, x) if reversed_ else (x, y)
    first[1, 4100] = 300.0
    labels[:] = 4100
    second[1, 7 + 2048 * block] = -INF
    direction = "target||adv" if reversed_ else "adv||target"
    named = {"train_kl": direction, "frozen_kl": direction}
    got, want = (run([x, y, y], labels, impl, **named) for impl in ("triton", "torch"))
    assert want[1].isfinite().all()
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-6)
    assert all(g.isfinite().all() for g in got[2])


def test_a_term_of_weight_zero_is_left_out():
    logits, labels = infinite("masked in clean", 7)
    loss, terms, grads = run(logits, labels, "triton", alpha=1.0, detach_targets=False)
    assert terms[1, 1] == INF
    assert loss.isfinite().all()
    assert all(g.isfinite().all() for g in grads)


def test_equal_logits_leave_the_cross_entropy():
    x, _, _, labels = batch(classes=2500)
    loss, terms, grads = run([x, x.clone(), x.clone()], labels, "triton", detach_targets=False)
    assert not terms[:, 1:].any()
    assert torch.equal(loss, terms[:, 0])
    assert not grads[1].any()
    assert not grads[2].any()


def test_rounding_leaves_no_divergence_below_zero():
    x, y, z, labels = batch(64, 50, scale=4.0)
    near = [x, x + 1e-4 * y, x + 1e-4 * z]
    check(near, labels, detach_targets=False)
    check(near, labels, train_kl="target||adv", frozen_kl="target||adv")


def test_weights_of_each_sample():
    *logits, labels = batch(4)
    alpha = torch.tensor([0.0, 0.25, 0.5, 1.0], device=DEVICE, dtype=torch.float16)
    lam = torch.tensor([2.0, 0.0, 1.0, 0.5], device=DEVICE, dtype=torch.float64)
    check(logits, labels, alpha=alpha, lam=lam, detach_targets=False)
    check(logits, labels, alpha=alpha, lam=1.3)
    check(logits, labels, alpha=0.2, lam=lam)


def test_each_matrix_has_its_own_dtype():
    x, y, z, labels = batch()
    check([x, y.bfloat16(), z.half()], labels, detach_targets=False)


@pytest.mark.parametrize("ce", ["adv", "clean"])
@pytest.mark.parametrize("bad", [-1, 7, 10**12])
def test_a_label_out_of_range_makes_its_row_nan(bad, ce):
    *logits, labels = batch()
    expected = run(logits, labels, "triton", ce=ce, detach_targets=False)
    labels[1] = bad
    loss, _, grads = run(logits, labels, "triton", ce=ce, detach_targets=False)
    assert loss.isnan().tolist() == [False, True, False]
    for got, want in zip(grads, expected[2], strict=True):
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])


def test_empty_batch():
    *logits, labels = batch(0)
    loss, terms, grads = run(logits, labels, "triton", detach_targets=False)
    assert (loss.shape, terms.shape) == ((0,), (0, 3))
    assert [g.shape for g in grads] == [(0, 7)] * 3


@pytest.mark.parametrize("order", ["gaps", "columns", "rows of a wider matrix", "expanded"])
def test_any_order_of_memory(order):
    x, y, z, labels = batch()
    if order == "gaps":
        x, y, z = strided(x), y, strided(z)
    elif order == "columns":
        x, y, z = x.t().contiguous().t(), y, z.t().contiguous().t()
    elif order == "rows of a wider matrix":
        x, z = torch.cat([x, x, y], dim=1)[:, 7:14], torch.cat([y, z], dim=1)[:, 7:]
    else:
        y, z = y[:1].expand(3, 7), z[:, :1].expand(3, 7)
    check([x, y, z], strided(labels[None])[0], detach_targets=False)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_what_learns(wanted):
    *logits, labels = batch(classes=1100)
    full = run(logits, labels, "triton", detach_targets=False)[2]
    inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(logits)]
    loss = consistency_loss(
        *inputs, labels, alpha=0.3, lam=1.7, detach_targets=False, impl="triton"
    )
    found = torch.autograd.grad(loss, [inputs[i] for i in wanted], weights(loss))
    for got, i in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, full[i], rtol=1e-6, atol=1e-7)


def test_two_runs_give_the_same_bits():
    *logits, labels = batch(classes=2500)
    first, second = (run(logits, labels, "triton", detach_targets=False) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(x, y) for x, y in zip(first[2], second[2], strict=True))


def test_statistics_are_those_of_the_plain_code():
    from fastprompt.kernels.consistency_loss.launch import launch_consistency_loss

    *logits, labels = batch(classes=2500)
    arguments = (labels, None, None, 0.3, 1.7, False, True, False)
    got = launch_consistency_loss(Loss(*logits, *arguments))[2]
    want = eager.consistency_loss(Loss(*[t.double() for t in logits], *arguments))[2]
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


if not INTERPRETED:

    def test_in_a_cuda_graph():
        *logits, labels = batch(classes=1000)
        inputs = [t.requires_grad_() for t in logits]

        def step():
            loss = consistency_loss(*inputs, labels, alpha=0.3, detach_targets=False, impl="triton")
            return loss, torch.autograd.grad(loss.sum(), inputs)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, grads = step()
        with torch.no_grad():
            for place, new in zip([*inputs, labels], batch(classes=1000, seed=1), strict=True):
                place.copy_(new)
        graph.replay()
        expected, expected_grads = step()
        assert torch.equal(loss, expected)
        assert all(torch.equal(x, y) for x, y in zip(grads, expected_grads, strict=True))
