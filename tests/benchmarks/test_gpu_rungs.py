"""What the GPU benchmarks compare, without a GPU."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_cuda import Seen, fake_cuda

from benchmarks.common.gpu_timing import busy_share
from benchmarks.gpu import kernels
from benchmarks.gpu import step as gpu_step
from benchmarks.gpu.merged_attention import merged_prefix
from benchmarks.ladder import kernel_groups
from fastprompt.kernels.prefix_attention.reference import prefix_attention

LENGTHS, PREFIX = [2, 4, 1, 3], 3


def plain(q, k, v, over):
    """Attention of packed sequences ``[N, H, d]``, and its log-sums ``[H, N]``."""
    outs, sums = [], []
    ends = zip(pairwise(over.queries.tolist()), pairwise(over.keys.tolist()), strict=True)
    for (a, b), (c, d) in ends:
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * q.shape[-1] ** -0.5
        if over.causal:
            scores = scores.masked_fill(torch.ones(b - a, d - c).triu(1).bool(), -torch.inf)
        sums.append(scores.logsumexp(-1))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    return torch.cat(outs), torch.cat(sums, dim=1)


def plain_backward(dout, q, k, v, out, lse, over):
    """As flash attention's: the weights are ``exp(scores - lse)`` of the log-sums it is given."""
    dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
    scale = q.shape[-1] ** -0.5
    ends = zip(pairwise(over.queries.tolist()), pairwise(over.keys.tolist()), strict=True)
    for (a, b), (c, d) in ends:
        weights = (torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale - lse[:, a:b, None]).exp()
        if over.causal:
            weights = weights.tril()
        delta = (dout[a:b] * out[a:b]).sum(-1).T[..., None]
        ds = weights * (torch.einsum("qhd,khd->hqk", dout[a:b], v[c:d]) - delta) * scale
        dq[a:b] += torch.einsum("hqk,khd->qhd", ds, k[c:d])
        dk[c:d] += torch.einsum("hqk,qhd->khd", ds, q[a:b])
        dv[c:d] += torch.einsum("hqk,qhd->khd", weights, dout[a:b])
    return dq, dk, dv


def tensors(dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    sizes = [sum(LENGTHS)] * 3 + [PREFIX] * 2
    made = [torch.randn(1, n, 2, 8, generator=generator, dtype=dtype) for n in sizes]
    return [t.to(device).requires_grad_() for t in made]


def test_merged_attention_equals_the_formula_with_its_gradients():
    given, direction = tensors(), torch.randn(1, sum(LENGTHS), 2, 8, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    results = []
    for call in (
        merged_prefix(LENGTHS, PREFIX, "cpu", (plain, plain_backward)),
        partial(prefix_attention, cu_seqlens=cu_seqlens),
    ):
        out = call(*given)
        results.append([out, *torch.autograd.grad(out, given, direction)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def test_merged_attention_calls_flash_attention_twice_each_way():
    with fake_cuda():
        call = merged_prefix(LENGTHS, PREFIX, "cuda:0")
        given = tensors(torch.bfloat16, "cuda:0")
        with Seen() as seen:
            out = call(*given)
            grads = torch.autograd.grad(out, given, torch.ones_like(out))
    assert [g.shape for g in (out, *grads)] == [t.shape for t in (given[0], *given)]
    assert seen.launches["_flash_attention_forward"] == 2
    assert seen.launches["_flash_attention_backward"] == 2


@pytest.fixture
def compiled(monkeypatch):
    """The ops of each function that is given to the compiler."""
    found = []

    def compile_(function, **_):
        def run(*inputs):
            with Seen() as seen:
                out = function(*inputs)
            found.append(seen.names)
            return out

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return found


def check(found: list[set[str]]) -> None:
    assert found
    for names in found:
        assert names
        assert not [name for name in names if name.startswith("fastprompt::")]


@pytest.mark.parametrize("name", ["pgd_bandwidth", "mixture", "consistency"])
def test_no_compiled_rung_of_a_gpu_task_holds_an_opaque_op(name, compiled, monkeypatch):
    def rounds(rungs, **_):
        return {rung: 1.0 for rung, call in rungs.items() if (call(), True)}

    monkeypatch.setattr(kernels, "event_rounds", rounds)
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda _: 1.0)
    nothing = SimpleNamespace(amount=1, run=lambda: None)
    monkeypatch.setattr(kernels, "multiplying", lambda _: nothing)
    monkeypatch.setattr(kernels, "difference", lambda *_: 0.0)
    monkeypatch.setattr(kernels, "DEVICE", "cuda:0")
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    with fake_cuda():
        getattr(kernels, name)()
    check(compiled)


GROUPS = {
    "mixture": (4, 10, 2),
    "layers": (2, 2, 5, 8),
    "consistency": (4, 10),
    "sign_step": (2, 8),
    "two_point_step": (2, 8),
}


@pytest.mark.parametrize("name", GROUPS)
def test_no_compiled_rung_of_the_ladder_holds_an_opaque_op(name, compiled):
    backward = "step" not in name
    getattr(kernel_groups, name)(*GROUPS[name], backward=backward, compiled=True)
    check(compiled)


def test_a_step_is_timed_even_if_its_implementations_differ(monkeypatch, small_clip):
    one = {"loss": torch.ones(1)}
    found = {"eager": one, "eager-hoisted": one, "fastprompt": {"loss": torch.ones(1) * 1.1}}
    low = {"eager": one, "fastprompt, bf16": {"loss": torch.full((1,), torch.nan)}}
    results = iter([found, low])
    timing = SimpleNamespace(as_dict=lambda: {"median": 1.0})
    for name, value in {
        "DEVICE": "cpu",
        "VARIANTS": {"eager": ("eager", {}, False)},
        "random_clip": lambda _: small_clip,
        "tuner_steps": lambda rungs, *_, **__: dict.fromkeys(rungs),
        "agreement": lambda _: next(results),
        "event_turns": lambda runs, *_, **__: dict.fromkeys(runs, timing),
        "peak_bytes": lambda _: 0,
        "captured": lambda _: {},
    }.items():
        monkeypatch.setattr(gpu_step, name, value)
    monkeypatch.setattr(gpu_step, "TunerStep", lambda *_, **__: _Step())
    out = gpu_step.tuning_step(classes=5, batch=2)
    assert out["eager"]["median"] == 1.0
    assert out["differences"]["agree"] is False
    assert "fastprompt" in out["differences"]["float32"]["wrong"]
    assert "nan" in out["differences"]["bfloat16"]["wrong"]


class _Step:
    tuner = SimpleNamespace(_attack=None)

    def __call__(self) -> None: ...

    def without_graph(self) -> None: ...


@pytest.mark.parametrize("variant", gpu_step.VARIANTS)
def test_every_variant_of_the_step_can_be_made(variant, monkeypatch, small_clip):
    monkeypatch.setattr(gpu_step, "N_CTX", 2)
    step, _ = gpu_step.make_step(variant, "", classes=3, batch=2, steps=1, clip=small_clip)
    assert step.tuner.config.precision == ("bf16" if "bf16" in variant else "fp32")


def test_a_baseline_that_fails_or_differs_is_marked():
    def fails():
        raise RuntimeError("no such operator")

    one = torch.ones(3)
    assert kernels.why_not(lambda: [one], one) == ""
    assert "no such operator" in kernels.why_not(fails, one)
    for wrong in (2 * one, one * torch.nan):
        assert "differs" in kernels.why_not(lambda wrong=wrong: [wrong], one)


def test_the_share_of_time_with_a_kernel():
    assert busy_share([(0, 2), (1, 3), (5, 10)]) == pytest.approx(0.8)


def test_a_variant_that_fails_does_not_stop_the_others(monkeypatch, small_clip):
    def make(variant, *_):
        if variant != "fastprompt":
            raise TypeError("it cannot be made")
        return _Step(), lambda: None

    timing = SimpleNamespace(as_dict=lambda: {"median": 1.0})
    for name, value in {
        "DEVICE": "cpu",
        "random_clip": lambda _: small_clip,
        "make_step": make,
        "event_turns": lambda runs, *_, **__: dict.fromkeys(runs, timing),
        "peak_bytes": lambda _: 0,
        "captured": lambda _: {},
        "gate_small": lambda _: {"agree": True},
    }.items():
        monkeypatch.setattr(gpu_step, name, value)
    out = gpu_step.tuning_step(classes=5, batch=2)
    assert out["fastprompt"]["median"] == 1.0
    assert out["eager: failed"] == "it cannot be made"
