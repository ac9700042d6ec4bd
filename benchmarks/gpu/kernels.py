"""Speed of the kernels on a GPU, compared with torch's fused code and the card's limits."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt.kernels import (
    consistency_loss,
    layer_consistency,
    mixture_logits,
    pgd_step,
    prefix_attention,
)
from fastprompt.kernels._dispatch import Impl
from fastprompt.kernels.pgd_step import reference as step_reference

from ..common.dry_run import DRY_RUN
from ..common.gpu_timing import DEVICE, Rungs, copy_bandwidth, event_rounds
from ..common.limits import multiplying
from ..common.notes import note
from ..common.paths import ROOT
from ..common.timing import difference
from ..ladder.group import LIMIT
from ..ladder.kernel_groups import (
    consistency_formula,
    copied_prefix,
    gram_mixture,
    layers_formula,
    mixture_formula,
)
from .merged_attention import merged_prefix

KERNEL: Impl = "torch" if DRY_RUN else "triton"
BOTH = (torch.bfloat16, torch.float32)


def pgd_bandwidth(batch: int = 256, size: int = 224, copied: int = 2**28) -> dict[str, Any]:
    """Measure the sign step on 256 images: its share of a copy's bandwidth."""
    limit = copy_bandwidth(copied)
    out: dict[str, Any] = {"copy_bytes_per_second": limit}
    x = torch.rand(batch, 3, size, size, device=DEVICE)
    x_adv = (x + 0.01).clamp(0, 1)
    counts = torch.zeros(batch, 2, dtype=torch.int64, device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        grad = torch.randn_like(x).to(dtype)
        named: dict[str, Any] = {"alpha": 0.01, "eps": 0.03}
        same = torch.equal(
            pgd_step(x_adv, x, grad, **named), pgd_step(x_adv, x, grad, impl="torch", **named)
        )
        if not same:
            raise RuntimeError(
                "the kernel and the plain code differ: they must be equal bit for bit"
            )

        def run(impl: Any, grad: Tensor = grad, **more: Any) -> Tensor:
            return pgd_step(x_adv, x, grad, alpha=0.01, eps=0.03, impl=impl, **more)

        def formula(x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
            # not the registered op, into which the compiler does not look
            return step_reference.pgd_step(x_adv, x, grad.float(), alpha=0.01, eps=0.03)

        rungs: Rungs = {
            "eager": lambda run=run: run("torch"),
            "compiled": partial(torch.compile(formula), x_adv, x, grad),
            "kernel": lambda run=run: run(KERNEL),
            "kernel, counts": lambda run=run: run(KERNEL, counts=counts),
        }
        seconds = event_rounds(rungs)
        moved = x.numel() * (12 + dtype.itemsize)
        out[str(dtype)] = seconds | {
            "bytes": moved,
            "share_of_copy": moved / seconds["kernel"] / limit,
            "share_of_copy_with_counts": moved / seconds["kernel, counts"] / limit,
        }
        note(str(dtype), out[str(dtype)])
    return out


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Any]:
    """Return a function that runs forward and backward with a fixed output gradient."""
    direction = torch.randn_like(function(*inputs))

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*inputs), inputs, direction)

    return run


def mixture(
    batch: int = 256, classes: int = 1000, prompts: int = 8, width: int = 512, low: bool = False
) -> dict[str, Any]:
    """Measure router and mixture at B, C, K, D = 256, 1000, 8, 512, in bf16 and float32.

    Args:
        low: compiled functions in bfloat16 only; float32 is AMPT's own path.
    """
    out: dict[str, Any] = {}
    limit = multiplying(torch.bfloat16)
    # the Gram matrices, and a product per prompt
    flops = 2 * classes * prompts * width * (prompts + batch)
    for dtype in BOTH:
        generator = torch.Generator().manual_seed(0)
        f = F.normalize(torch.randn(batch, width, generator=generator), dim=-1)
        t = F.normalize(torch.randn(prompts, classes, width, generator=generator), dim=-1)
        router = torch.randn(batch, prompts, generator=generator)
        inputs = [v.to(DEVICE, dtype).requires_grad_() for v in (f, t)]
        inputs += [v.to(DEVICE).requires_grad_() for v in (router, torch.tensor(100.0))]
        functions: dict[str, Callable[..., Tensor]] = {
            "eager plain": mixture_formula,
            "compiled plain": torch.compile(mixture_formula),
            "eager Gram": gram_mixture,
            "compiled Gram": torch.compile(gram_mixture),
            "kernel": lambda *inputs: mixture_logits(*inputs, impl=KERNEL),
        }
        if low and dtype == torch.float32:
            functions = {n: call for n, call in functions.items() if "compiled" not in n}
        exact = mixture_formula(*(v.detach().double() for v in inputs))
        errors = {name: difference(call(*inputs), exact) for name, call in functions.items()}
        if not errors["kernel"] <= 2 * errors["eager plain"] + 1e-6:
            raise RuntimeError(
                f"the kernel's error exceeds the plain code's, both against float64: {errors}"
            )
        detached = [v.detach() for v in inputs]
        given = {n: partial(c, *detached) for n, c in functions.items()}
        forward = event_rounds({**given, LIMIT: limit.run}, backlog=None)
        rate = limit.amount / forward.pop(LIMIT)
        trained = {n: with_gradients(c, *inputs) for n, c in functions.items()}
        whole = event_rounds(trained, backlog=None)
        out[str(dtype)] = {
            "matmul_share, forward": flops / forward["kernel"] / rate,
            "errors": errors,
            "forward": forward,
            "forward and backward": whole,
            "ratios": {n: whole[n] / whole["kernel"] for n in functions},
            "ratios, forward": {n: forward[n] / forward["kernel"] for n in functions},
        }
        note(str(dtype), out[str(dtype)])
    return out


def lengths_of(classes: int) -> list[int]:
    """Return the numbers of tokens of class names, 2 to 8."""
    return [2 + i % 7 for i in range(classes)]


def attention(
    classes: int = 1000, heads: int = 8, prefix: int = 17, d: int = 64, low: bool = False
) -> dict[str, Any]:
    """Measure suffixes of 2 to 8 tokens after a prefix, against fused attention.

    It runs on copies of the prefix before each padded class and, in bfloat16, on the packed tokens;
    see `merged_prefix`. If that one fails or differs, it is marked and not timed.

    Args:
        low: in bfloat16 only.
    """
    merged = merged_prefix(lengths_of(classes), prefix, DEVICE)
    lengths = lengths_of(classes)
    longest, total = max(lengths), sum(lengths)
    used = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]  # [C, S]
    mask = torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix).to(DEVICE)
    cu = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    out: dict[str, Any] = {"classes": classes, "tokens": total, "longest": longest}
    for dtype in BOTH[: 1 if low else 2]:
        generator = torch.Generator(DEVICE).manual_seed(0)

        def random(*shape: int, dtype: Any = dtype, generator: Any = generator) -> Tensor:
            out = torch.randn(*shape, device=DEVICE, dtype=dtype, generator=generator)
            return out.requires_grad_()

        packed = [random(1, total, heads, d) for _ in range(3)]
        front = [random(1, prefix, heads, d) for _ in range(2)]
        padded = []
        for tensor in packed:
            wide = torch.zeros(classes, longest, heads, d, device=DEVICE, dtype=dtype)
            wide[used.to(DEVICE)] = tensor.detach()[0]
            padded.append(wide.transpose(1, 2).contiguous().requires_grad_())

        def mine(*inputs: Tensor) -> Tensor:
            return prefix_attention(*inputs, cu, impl=KERNEL)

        def theirs(*inputs: Tensor) -> Tensor:
            return copied_prefix(*inputs, mask)

        got = mine(*packed, *front)[0]
        expected = theirs(*padded, *front).transpose(1, 2)[used.to(DEVICE)]
        error = difference(got, expected)
        if not error <= (2e-2 if dtype == torch.bfloat16 else 1e-4):
            raise RuntimeError(f"differs from fused attention by {error}")
        ways = {"copied prefix": (theirs, (*padded, *front)), "kernel": (mine, (*packed, *front))}
        wrong = "needs bfloat16"
        if dtype == torch.bfloat16:
            wrong = why_not(partial(merged, *packed, *front), expected)
            if not wrong:
                ways["merged"] = (merged, (*packed, *front))
        forward = event_rounds(
            {n: partial(call, *(t.detach() for t in given)) for n, (call, given) in ways.items()}
        )
        whole = event_rounds({n: with_gradients(call, *given) for n, (call, given) in ways.items()})
        others = [name for name in ways if name != "kernel"]
        out[str(dtype)] = {
            "difference": error,
            **({"merged, not timed": wrong} if wrong else {}),
            "forward": forward,
            "forward and backward": whole,
            "ratios, forward": {n: forward[n] / forward["kernel"] for n in others},
            "ratios": {n: whole[n] / whole["kernel"] for n in others},
        }
        note(str(dtype), out[str(dtype)])
    return out


def why_not(baseline: Callable[[], Tensor], expected: Tensor, limit: float = 2e-2) -> str:
    """Return why a baseline cannot be compared with, empty if it can; its failure is no task's."""
    try:
        error = difference(baseline()[0], expected)
    except (RuntimeError, TypeError) as failure:  # torch's own operator, whose arguments vary
        return f"failed: {str(failure)[:1000]}"
    return "" if error <= limit else f"differs from fused attention by {error}"


def consistency(
    layers: int = 12,
    batch: int = 32,
    tokens: int = 213,
    width: int = 768,
    classes: int = 1000,
    images: int = 256,
    copied: int = 2**28,
) -> dict[str, Any]:
    """Measure both consistency losses at NAP's and CAPT's sizes, against compiled plain code."""
    limit = copy_bandwidth(copied)
    features = [
        torch.randn(batch, tokens, width, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
        for _ in range(2 * layers)
    ]
    compiled = torch.compile(layers_formula)
    rungs = {
        "eager": with_gradients(layers_formula, *features),
        "compiled": with_gradients(compiled, *features),
        "kernel": with_gradients(
            lambda *f: layer_consistency(f[:layers], f[layers:], impl=KERNEL), *features
        ),
    }
    seconds = event_rounds(rungs)
    moved = 3 * sum(f.numel() * 2 for f in features)  # read twice, gradients written once
    out: dict[str, Any] = {
        "layer_consistency": seconds
        | {
            "share_of_copy": moved / seconds["kernel"] / limit,
            "ratio to compiled": seconds["compiled"] / seconds["kernel"],
        }
    }
    note("layer_consistency", out["layer_consistency"])
    logits = [20 * torch.randn(images, classes, device=DEVICE) for _ in range(3)]
    adv = logits[0].requires_grad_()
    labels = torch.randint(classes, (images,), device=DEVICE)

    def formula(adv: Tensor) -> Tensor:
        return consistency_formula(adv, logits[1], logits[2], labels)

    def mine(adv: Tensor) -> Tensor:
        return consistency_loss(adv, logits[1], logits[2], labels, alpha=0.5, impl=KERNEL)

    error = difference(mine(adv), formula(adv.double()))
    if not error <= 1e-5:
        raise RuntimeError(f"differs from the plain formula by {error}")
    rungs = {
        "eager": with_gradients(formula, adv),
        "compiled": with_gradients(torch.compile(formula), adv),
        "kernel": with_gradients(mine, adv),
    }
    seconds = event_rounds(rungs)
    out["consistency_loss"] = seconds | {
        "difference": error,
        "ratio to compiled": seconds["compiled"] / seconds["kernel"],
    }
    return out


def sanitized() -> dict[str, Any]:
    """Run the launch tests under compute-sanitizer, if it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"installed": False}
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    chosen = ["tests/kernels/launch", "-k", "not past_two and not graph and not many"]
    command = [tool, "--error-exitcode", "9", "--launch-timeout", "0", *tests, *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=450)
    if done.returncode:
        raise RuntimeError(done.stdout[-6000:] + done.stderr[-2000:])
    return {"installed": True, "summary": done.stdout.strip().splitlines()[-3:]}
