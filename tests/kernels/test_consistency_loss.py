"""CAPT's loss against its formula, its options and extremes, and what it refuses."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastprompt.kernels import consistency_loss
from fastprompt.kernels.consistency_loss import eager, reference

DIRECTIONS = ("adv||target", "target||adv")
INF = float("inf")


def batch(n=4, classes=7, dtype=torch.float64, seed=0, scale=2.0):
    gen = torch.Generator().manual_seed(seed)
    logits = [
        (scale * torch.randn(n, classes, generator=gen, dtype=torch.float64)).to(dtype)
        for _ in range(3)
    ]
    return *logits, torch.randint(classes, (n,), generator=gen)


def formula(*arguments, **named):
    return reference.consistency_loss(*arguments, **named)[0]


OPTIONS = [
    {"ce": ce, "train_kl": train, "frozen_kl": far}
    for ce, train, far in itertools.product(("adv", "clean"), DIRECTIONS, DIRECTIONS)
]


def name_of(options):
    return "-".join(str(v) for v in options.values())


def learning(*logits):
    return [t.detach().clone().requires_grad_() for t in logits]


WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


def gradients(f, logits, labels, **named):
    """Zeros where none arrives."""
    logits = learning(*logits)
    total = (f(*logits, labels, **named) * WEIGHT[: len(labels)]).sum()
    found = torch.autograd.grad(total, logits, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, logits, strict=True)]


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_equals_the_formula(options):
    *logits, labels = batch()
    got, terms = consistency_loss(*logits, labels, alpha=0.3, lam=1.7, return_terms=True, **options)
    loss, expected = reference.consistency_loss(*logits, labels, 0.3, 1.7, **options)
    torch.testing.assert_close(got, loss, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(terms, expected, rtol=1e-13, atol=1e-13)
    assert not terms.requires_grad


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "learning"])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_gradients_are_autograd_s_of_the_formula(options, detach):
    *logits, labels = batch()
    named = {"alpha": 0.3, "lam": 1.7, "detach_targets": detach, **options}
    expected = gradients(formula, logits, labels, **named)
    for got, want in zip(
        gradients(consistency_loss, logits, labels, **named), expected, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_the_second_direction_is_what_kl_div_computes():
    *logits, labels = batch()
    _, terms = consistency_loss(
        *logits, labels, alpha=0.3, train_kl="target||adv", return_terms=True
    )
    theirs = F.kl_div(logits[0].log_softmax(1), logits[1].softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(terms[:, 1], theirs)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=name_of)
def test_gradcheck(options):
    *logits, labels = batch(3, 5)
    assert torch.autograd.gradcheck(
        lambda *t: consistency_loss(
            *t, labels, alpha=0.3, lam=1.7, detach_targets=False, **options
        ),
        learning(*logits),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_weights_of_each_sample(dtype):
    *logits, labels = batch()
    alpha = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype)
    lam = torch.tensor([2.0, 0.0, 1.0, 0.5], dtype=dtype)
    got = consistency_loss(*logits, labels, alpha=alpha, lam=lam)
    torch.testing.assert_close(got, formula(*logits, labels, alpha, lam), rtol=1e-13, atol=0)
    named = {"alpha": alpha, "lam": lam, "detach_targets": False}
    expected = gradients(formula, logits, labels, **named)
    for g, want in zip(gradients(consistency_loss, logits, labels, **named), expected, strict=True):
        torch.testing.assert_close(g, want, rtol=1e-12, atol=1e-14)


def test_weights_get_no_gradient():
    *logits, labels = batch()
    alpha, lam = (torch.full((4,), v, dtype=torch.float64, requires_grad=True) for v in (0.5, 2.0))
    assert not consistency_loss(*logits, labels, alpha=alpha, lam=lam).requires_grad


@pytest.mark.parametrize(
    ("ce", "detach", "reached"),
    [
        ("adv", True, [True, False, False]),
        ("clean", True, [True, True, False]),
        ("adv", False, [True, True, True]),
    ],
)
def test_which_logits_get_a_gradient(ce, detach, reached):
    *logits, labels = batch()
    logits = learning(*logits)
    consistency_loss(*logits, labels, alpha=0.5, ce=ce, detach_targets=detach).sum().backward()
    assert [t.grad is not None for t in logits] == reached


def test_only_what_learns_gets_a_gradient():
    *logits, labels = batch()
    named = {"alpha": 0.3, "detach_targets": False}
    full = gradients(consistency_loss, logits, labels, **named)
    for which in range(3):
        one = [t.detach().clone().requires_grad_(i == which) for i, t in enumerate(logits)]
        loss = (consistency_loss(*one, labels, **named) * WEIGHT).sum()
        assert torch.equal(torch.autograd.grad(loss, one[which])[0], full[which])
    assert not consistency_loss(*logits, labels, alpha=0.3).requires_grad


def test_equal_logits_leave_the_cross_entropy():
    x, _, _, labels = batch(dtype=torch.float32)
    loss, terms = consistency_loss(x, x, x, labels, alpha=0.5, return_terms=True)
    torch.testing.assert_close(loss, F.cross_entropy(x, labels, reduction="none"))
    assert not terms[:, 1:].any()
    got = gradients(consistency_loss, [x, x, x], labels, alpha=0.5)[0]
    expected = gradients(formula, [x, x, x], labels, alpha=0.5, lam=0.0)[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_one_class():
    x = torch.randn(3, 1)
    loss, terms = consistency_loss(
        x, x + 1, x - 2, torch.zeros(3).long(), alpha=0.5, return_terms=True
    )
    assert not loss.any()
    assert not terms.any()
    logits = [x, x + 1, x - 2]
    grads = gradients(consistency_loss, logits, torch.zeros(3).long(), alpha=0.5, ce="clean",
                      detach_targets=False)  # fmt: skip
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_large_logits_lose_nothing(options):
    # a common offset changes no probability; float32 holds these logits exactly
    *logits, labels = batch(dtype=torch.float16, scale=4.0)
    logits = [(t.float() * 16).round() / 16 for t in logits]
    far = [t + offset for t, offset in zip(logits, (1e4, -2e4, 3e4), strict=True)]
    named = {"alpha": 0.3, "lam": 1.7, "detach_targets": False, **options}
    expected = consistency_loss(*logits, labels, **named)
    assert torch.equal(consistency_loss(*far, labels, **named), expected)
    pairs = gradients(consistency_loss, far, labels, **named)
    for got, want in zip(pairs, gradients(consistency_loss, logits, labels, **named), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_logits_of_ten_thousand(options):
    *logits, labels = batch(scale=1e4)
    got = consistency_loss(*[t.float() for t in logits], labels, alpha=0.3, **options)
    exact = formula(*[t.float().double() for t in logits], labels, alpha=0.3, **options)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_masked_classes_count_as_absent(options):
    *logits, labels = batch()
    masked = [torch.cat([t, torch.full((4, 2), -INF).double()], dim=1) for t in logits]
    named = {"alpha": 0.3, "detach_targets": False, **options}
    got, expected = (consistency_loss(*t, labels, **named) for t in (masked, logits))
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    pairs = gradients(consistency_loss, masked, labels, **named)
    for got, want in zip(pairs, gradients(consistency_loss, logits, labels, **named), strict=True):
        torch.testing.assert_close(got[:, :7], want, rtol=1e-14, atol=1e-15)
        assert not got[:, 7:].any()


def test_a_class_masked_in_one_distribution():
    *logits, labels = batch()
    labels[:] = 0
    logits[1][0, 3] = -INF
    forward, terms = consistency_loss(*logits, labels, alpha=0.3, return_terms=True)
    assert forward.tolist()[0] == INF
    assert terms[0].isfinite().tolist() == [True, False, True]
    assert forward[1:].isfinite().all()
    swapped = consistency_loss(*logits, labels, alpha=0.3, train_kl="target||adv")
    logits[1][0, 3] = -1e3  # whose probability is 0 as well
    expected = formula(*logits, labels, 0.3, train_kl="target||adv")
    torch.testing.assert_close(swapped, expected, rtol=1e-13, atol=0)
    logits[1][0, 3] = -INF
    # a term of weight 0 is left out
    assert consistency_loss(*logits, labels, alpha=1.0).isfinite().all()
    grads = gradients(consistency_loss, logits, labels, alpha=1.0, detach_targets=False)
    assert all(g.isfinite().all() for g in grads)


def test_a_label_on_a_masked_class_and_a_masked_row():
    *logits, labels = batch()
    logits[0][0, labels[0]] = -INF
    logits[0][1] = -INF
    logits[1][2] = -INF
    loss = consistency_loss(*logits, labels, alpha=0.5)
    assert loss[0] == INF
    assert loss[1:3].isnan().all()
    assert loss[3].isfinite()


def test_one_hot_rows():
    x = torch.full((2, 5), -200.0)
    x[0, 1], x[1, 3] = 200.0, 200.0
    labels = torch.tensor([1, 2])
    loss = consistency_loss(x, x, x.roll(1, dims=1), labels, alpha=0.5)
    assert loss.tolist() == [200.0, 600.0]


def neighbors(seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(64, 50, generator=gen, dtype=torch.float64)
    y = x + 1e-3 * torch.randn(x.shape, generator=gen, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def test_what_is_left_of_a_small_divergence():
    x, y = neighbors(dtype=torch.float32)
    labels = torch.zeros(len(x)).long()
    _, terms = consistency_loss(x, y, y, labels, alpha=0.5, return_terms=True)
    _, exact = consistency_loss(
        x.double(), y.double(), y.double(), labels, alpha=0.5, return_terms=True
    )
    assert exact[:, 1].max() < 1e-5
    assert (terms - exact)[:, 1:].abs().max() < 4 * 2.0**-23
    assert terms.min() >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    *logits, labels = batch(dtype=dtype)
    loss = consistency_loss(*logits, labels, alpha=0.3)
    assert loss.dtype == torch.float32
    exact = consistency_loss(*[t.double() for t in logits], labels, alpha=0.3)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    named = {"alpha": 0.3, "detach_targets": False}
    got = gradients(consistency_loss, logits, labels, **named)
    assert [g.dtype for g in got] == [dtype] * 3


def test_each_matrix_may_have_its_own_dtype():
    x, y, z, labels = batch()
    mixed = [x.float(), y.bfloat16(), z.half()]
    loss, terms = consistency_loss(*mixed, labels, alpha=0.3, return_terms=True)
    assert loss.dtype == terms.dtype == torch.float32
    exact = consistency_loss(*[t.double() for t in mixed], labels, alpha=0.3)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    grads = gradients(consistency_loss, mixed, labels, alpha=0.3, detach_targets=False)
    assert [g.dtype for g in grads] == [t.dtype for t in mixed]
    assert consistency_loss(x.float(), y, z.half(), labels, alpha=0.3).dtype == torch.float64


def test_a_label_out_of_range():
    *logits, labels = batch()
    for bad in (-1, 7):
        labels[2] = bad
        with pytest.raises(ValueError, match=f"^labels .*0 .*6.*{bad}"):
            consistency_loss(*logits, labels, alpha=0.5)


def test_a_label_out_of_range_where_values_are_not_looked_at(monkeypatch):
    *logits, labels = batch()
    expected = consistency_loss(*logits, labels, alpha=0.5)
    expected_grads = gradients(consistency_loss, logits, labels, alpha=0.5)
    monkeypatch.setattr(eager, "readable", lambda _: False)
    for bad in (-1, 7):
        labels[2] = bad
        loss = consistency_loss(*logits, labels, alpha=0.5)
        grads = gradients(consistency_loss, logits, labels, alpha=0.5)
        assert loss.isnan().tolist() == [False, False, True, False]
        assert grads[0][2].isnan().all()
        assert torch.equal(loss[[0, 1, 3]], expected[[0, 1, 3]])
        rest = [t[0][[0, 1, 3]] for t in (grads, expected_grads)]  # masked, and in fewer passes
        torch.testing.assert_close(*rest, rtol=1e-13, atol=1e-15)


def test_empty_batch():
    *logits, labels = batch(0)
    loss, terms = consistency_loss(*logits, labels, alpha=0.5, return_terms=True)
    assert (loss.shape, terms.shape) == ((0,), (0, 3))
    assert gradients(consistency_loss, logits, labels, alpha=0.5)[0].shape == (0, 7)


def test_non_contiguous_inputs_give_the_same():
    *logits, labels = batch()
    named = {"alpha": 0.3, "detach_targets": False}
    turned = [t.t().contiguous().t() for t in logits]
    wide = torch.stack([labels, labels], dim=1)[:, 0]
    torch.testing.assert_close(
        consistency_loss(*turned, wide, **named), consistency_loss(*logits, labels, **named)
    )
    pairs = gradients(consistency_loss, turned, wide, **named)
    for got, want in zip(pairs, gradients(consistency_loss, logits, labels, **named), strict=True):
        torch.testing.assert_close(got, want)


def test_impl_torch_is_auto_on_a_cpu():
    *logits, labels = batch(dtype=torch.float32)
    named = {"alpha": 0.3, "detach_targets": False}
    losses = [consistency_loss(*logits, labels, impl=i, **named) for i in ("torch", "auto")]
    assert torch.equal(*losses)
    both = [gradients(consistency_loss, logits, labels, impl=i, **named) for i in ("torch", "auto")]
    assert all(torch.equal(x, y) for x, y in zip(*both, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    *logits, labels = batch(dtype=dtype)
    logits[0] = logits[0].t().contiguous().t()
    ops = torch.ops.fastprompt
    alphas, flags = torch.rand(4), (True, False, True)
    arguments = (*logits, labels, alphas, None, 0.0, 1.5, *flags)
    loss, _, statistics = ops.consistency_loss(*arguments)
    torch.library.opcheck(ops.consistency_loss.default, arguments)
    torch.library.opcheck(
        ops.consistency_loss_backward.default,
        (loss, *logits, labels, statistics, *flags, False, [True, True, False]),
    )


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_compiles_without_graph_breaks(impl):
    def step(*arguments, alpha):
        return consistency_loss(
            *arguments, alpha=alpha, detach_targets=False, return_terms=True, impl=impl
        )

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for n, classes in ((4, 7), (5, 9)):
        *logits, labels = batch(n, classes, torch.float32)
        logits, alpha = learning(*logits), torch.rand(n)
        results = [f(*logits, labels, alpha=alpha) for f in (compiled, step)]
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(loss.square().sum(), logits) for loss, _ in results]
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_meta_tensors(dtype, impl):
    *logits, labels = (t.to("meta") for t in batch(dtype=dtype))
    logits = learning(*logits)
    loss, terms = consistency_loss(
        *logits, labels, alpha=0.5, detach_targets=False, return_terms=True, impl=impl
    )
    assert (loss.shape, terms.shape) == ((4,), (4, 3))
    assert loss.dtype == terms.dtype == torch.promote_types(dtype, torch.float32)
    grads = torch.autograd.grad(loss.sum(), logits)
    assert [(g.shape, g.dtype) for g in grads] == [((4, 7), dtype)] * 3


def refused(error, match, **changes):
    adv, clean, frozen, labels = batch(dtype=torch.float32)
    arguments = {
        "adv_logits": adv, "clean_logits": clean, "frozen_logits": frozen, "labels": labels,
        "alpha": 0.5,
    }  # fmt: skip
    with pytest.raises(error, match=match):
        consistency_loss(**arguments | changes)


def test_what_it_refuses():
    wide = torch.zeros(4, 8)
    refused(ValueError, r"^adv_logits .*\[B, C\].*\[4\]", adv_logits=torch.zeros(4))
    refused(ValueError, r"^adv_logits .*\[B, C\].*\[4, 0\]", adv_logits=torch.zeros(4, 0))
    refused(ValueError, r"^clean_logits .*\[4, 7\].*\[4, 8\]", clean_logits=wide)
    refused(ValueError, r"^frozen_logits .*\[4, 7\].*\[4, 8\]", frozen_logits=wide)
    refused(TypeError, "^frozen_logits .*float32.*int32", frozen_logits=wide[:, :7].int())
    refused(ValueError, "^clean_logits .*cpu.*meta", clean_logits=batch()[1].to("meta"))
    refused(ValueError, "^labels .*cpu.*meta", labels=batch()[3].to("meta"))
    refused(ValueError, "^alpha .*cpu.*meta", alpha=torch.zeros(4, device="meta"))
    refused(TypeError, "^labels .*int64.*int32.*long", labels=batch()[3].int())
    refused(ValueError, r"^labels .*\[4\].*\[3\]", labels=batch()[3][:3])
    refused(ValueError, "^alpha .*0.*1.*1.5", alpha=1.5)
    refused(ValueError, "^alpha .*0.*1.*nan", alpha=float("nan"))
    refused(ValueError, "^lam .*0.*-1", lam=-1)
    refused(ValueError, "^lam .* inf", lam=float("inf"))
    refused(ValueError, r"^alpha .*\[4\].*\[4, 1\]", alpha=torch.zeros(4, 1))
    refused(TypeError, "^lam .*float32.*int32", lam=torch.ones(4).int())
    refused(ValueError, "^ce .*'clean'.*'both'", ce="both")
    refused(ValueError, r"^train_kl .*'adv\|\|target'", train_kl="adv")
    refused(ValueError, r"^frozen_kl .*'adv\|\|target'", frozen_kl="adv")
    refused(RuntimeError, "^impl.*'triton'.*cpu", impl="triton")
    refused(ValueError, "^impl .*'cuda'", impl="cuda")


@pytest.mark.parametrize("name", ["adv_logits", "clean_logits", "frozen_logits", "labels"])
@pytest.mark.parametrize("value", [None, [[0.1]]])
def test_tensors_are_wanted(name, value):
    refused(TypeError, f"^{name} .*tensor.*{type(value).__name__}", **{name: value})


@pytest.mark.parametrize("name", ["alpha", "lam"])
def test_numbers_are_wanted(name):
    refused(TypeError, rf"^{name} .*\[4\].*NoneType", **{name: None})
    refused(TypeError, f"^{name} .*number.*list", **{name: [0.5] * 4})
    refused(TypeError, f"^{name} .*number.*'1/2'", **{name: "1/2"})
    refused(ValueError, f"^{name} .*nan", **{name: float("nan")})
