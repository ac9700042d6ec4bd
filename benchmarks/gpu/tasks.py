"""Tasks of `benchmarks.gpu`, the most valuable first."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt import FrozenCLIP
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.context import TextContext
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.towers import ReferenceTextTower, TextTower
from fastprompt.tuning.online_pgd import OnlinePGD

from ..common.gpu_timing import (
    DEVICE,
    busy_share,
    event_turns,
    peak_bytes,
    tf32,
    under_tf32,
)
from ..common.limits import multiplying
from ..common.models import class_names, composed_names, random_clip
from ..common.paths import ROOT
from ..common.timing import RungsDifferError, count_flops, difference, gate
from ..common.tuner_steps import NAMES, TunerStep, agreement, random_images, tuner_steps
from ..ladder.group import LIMIT
from .kernels import attention, consistency, mixture, pgd_bandwidth, sanitized
from .task import Task

N_CTX = 16


PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
LAUNCH = "tests/kernels/launch"


def gpu_tests() -> dict[str, Any]:
    """Run every test marked ``gpu`` except those of the kernels, in a separate process."""
    command = [*PYTEST, f"--ignore={LAUNCH}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=450)
    if done.returncode:
        raise RuntimeError(done.stdout[-6000:] + done.stderr[-2000:])
    return {"summary": done.stdout.strip().splitlines()[-1]}


def kernel_tests() -> dict[str, Any]:
    """Compare kernels and plain code, one process per test file: most of it is compilation."""
    running = {
        path.stem: subprocess.Popen(
            [*PYTEST, str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for path in sorted((ROOT / LAUNCH).glob("test_*.py"))
    }
    outputs = {name: process.communicate(timeout=450)[0] for name, process in running.items()}
    failed = [outputs[n][-3000:] for n, process in running.items() if process.returncode]
    if failed:
        raise RuntimeError("\n".join(failed))
    return {name: output.strip().splitlines()[-1] for name, output in outputs.items()}


def attack_rate(batch: int = 256, steps: int = 10) -> dict[str, Any]:
    """Measure PGD-10 on ViT-B/16 in bf16: images per second, share of the plain product's rate.

    All variants and the plain product run interleaved.
    """
    clip = random_clip("ViT-B-16").to(DEVICE)
    data = random_images(batch, clip.image_size, 100)
    images, labels = data.images.to(DEVICE).float() / 255, data.labels.to(DEVICE)
    rows = torch.arange(batch, device=DEVICE)
    ways: dict[str, Callable[[], Tensor]] = {}
    for compiled in (False, True):
        prompts = TextContext(N_CTX, 512).to(DEVICE)
        model = PromptedCLIP(clip, class_names(100), prompts, precision="bf16", compile=compiled)
        prepared = model.prepare()
        for captured in (False, True):
            attack = OnlinePGD(model, "4/255", "1/255", steps, capture=captured)

            def run(attack: OnlinePGD = attack, prepared: Any = prepared) -> Tensor:
                return attack(images, labels, rows, prepared).images

            ways[f"compile={compiled}, graph={captured}"] = run
    plain = "compile=False, graph=False"
    flops, peak = count_flops(ways[plain]), peak_bytes(ways[plain])
    limit = multiplying(torch.bfloat16)
    timings = event_turns({**ways, LIMIT: limit.run}, 5, warmup=3)
    rate = limit.amount / timings[LIMIT].median
    out: dict[str, Any] = {"batch": batch, "steps": steps, "bf16_matmul_flops": rate}
    out |= {"flops": flops, f"peak_bytes, {plain}": peak}
    for name, way in ways.items():
        seconds = timings[name].median
        out[name] = {
            **timings[name].as_dict(),
            "images_per_second": batch / seconds,
            "matmul_share": flops / seconds / rate,
            "busy_share": busy_share(way),
        }
    return out


def text_tower() -> dict[str, Any]:
    """Measure ViT-B-32's text encoder on ImageNet's names, forward and backward, in float32."""
    clip = random_clip("ViT-B-32").to(DEVICE)
    context = (0.02 * torch.randn(N_CTX, 512)).to(DEVICE).requires_grad_()
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))
    towers = {
        "eager": ReferenceTextTower(clip, names, N_CTX),
        "fastprompt": TextTower(clip, names, N_CTX, dtype=torch.float32),
        "fastprompt, bf16": TextTower(clip, names, N_CTX, dtype=torch.bfloat16),
    }
    steps: dict[str, Callable[[], Tensor]] = {}
    features: dict[str, Tensor] = {}
    for rung, tower in towers.items():

        def step(tower: Any = tower) -> Tensor:
            return torch.autograd.grad(tower(context).float().square().sum(), context)[0]

        steps[rung] = step
        features[rung] = tower(context).detach().float()
    timings = event_turns(steps, 5)
    out: dict[str, Any] = {"classes": len(names)}
    for rung, step in steps.items():
        out[rung] = {
            **timings[rung].as_dict(),
            "peak_bytes": peak_bytes(step),
            "difference": difference(features[rung], features["eager"]),
        }
    out["ratio"] = timings["eager"].median / timings["fastprompt"].median
    out["memory_ratio"] = out["eager"]["peak_bytes"] / out["fastprompt"]["peak_bytes"]
    return out


def many_classes(classes: int = 21_000) -> dict[str, Any]:
    """Measure the text encoder on 21,000 names, in chunks."""
    clip = random_clip("ViT-B-32").to(DEVICE)
    context = (0.02 * torch.randn(N_CTX, 512)).to(DEVICE).requires_grad_()
    out: dict[str, Any] = {"classes": classes}
    for chunk in (1000, 4000, None):
        tower = TextTower(clip, composed_names(classes), N_CTX, class_chunk=chunk)

        def step(tower: TextTower = tower) -> Tensor:
            return torch.autograd.grad(tower(context).square().sum(), context)[0]

        out[f"chunk {tower.class_chunk}{'' if chunk else ' (default)'}"] = {
            **event_turns({"": step}, 3, warmup=1)[""].as_dict(),
            "peak_bytes": peak_bytes(step),
        }
    return out


FLOAT32 = ("eager", "eager-hoisted", "fastprompt")
FP32: dict[str, Any] = {"precision": "fp32", "compile": False}
# name of the result: implementation, settings, whether TF32 is allowed
VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "eager": ("eager", {}, False),
    "eager, TF32": ("eager", {}, True),
    "eager-hoisted": ("eager-hoisted", {}, False),
    "eager-careful": ("eager-careful", {}, True),
    "fastprompt": ("fastprompt", FP32, False),
    "fastprompt, bf16": ("fastprompt", {"precision": "bf16", "compile": False}, False),
    "fastprompt, bf16, compiled": ("fastprompt", {"precision": "bf16", "compile": True}, False),
}


def gate_small(clip: FrozenCLIP) -> dict[str, Any]:
    """Compare losses and gradients on a few classes before a step is timed.

    The float32 implementations should agree; bfloat16's differences from them are only reported.
    A difference does not stop the measurement: in float32, it may be rounding that a refiner's ReLU
    amplifies. ``agree`` marks the result.
    """
    data = random_images(4, clip.image_size, len(NAMES))

    def made(rung: str, **settings: Any) -> TunerStep:
        return tuner_steps((rung,), "nap", clip, NAMES, data, **settings)[rung]

    with tf32(False):
        steps = {rung: made(rung, **_settings(rung)) for rung in FLOAT32}
        results = agreement(steps)
        careful = {"eager-careful": made("eager-careful")}
        fast = {"fastprompt, bf16": made("fastprompt", precision="bf16", compile=False)}
        low = agreement({"eager": steps["eager"], **careful, **fast})
    exact, shown = compared(results), compared(low, limit=float("inf"))
    return {"agree": "wrong" not in exact, "float32": exact, "bfloat16": shown}


def compared(results: Any, **options: Any) -> dict[str, Any]:
    """Return the differences from the baseline, or an entry ``wrong`` that says what is wrong."""
    try:
        return gate(results, **options)
    except RungsDifferError as error:
        return {"wrong": str(error)}


def _settings(rung: str) -> dict[str, Any]:
    return FP32 if rung == "fastprompt" else {}


def tuning_step(
    name: str = "ViT-B-16", classes: int = 1000, batch: int = 32, steps: int = 5
) -> dict[str, Any]:
    """Measure NAP's step at its published size in every variant; failures are only recorded."""
    clip = random_clip(name).to(DEVICE)
    names, data = class_names(classes), random_images(batch, clip.image_size, classes)
    out: dict[str, Any] = {"classes": classes, "batch": batch, "steps": steps}
    try:
        out["differences"] = gate_small(clip)
    except RuntimeError as error:  # the times are worth more than the comparison
        out["differences"] = {"agree": False, "failed": str(error)[-2000:]}
    made: dict[str, TunerStep] = {}
    runs: dict[str, Callable[[], object]] = {}
    for variant, (rung, settings, allowed) in VARIANTS.items():
        step = TunerStep(rung, "nap", clip, names, data, n_ctx=N_CTX, steps=steps, **settings)
        run = under_tf32(allowed, step)
        try:
            run()  # may run out of memory or fail to compile: the others still run
        except RuntimeError as error:
            out[f"{variant}: failed"] = str(error)[-2000:]
        else:
            made[variant], runs[variant] = step, run
        torch.cuda.empty_cache()
    for variant, timing in event_turns(runs, 5, warmup=1).items():
        # a replay's memory is in the graph's pool and not counted
        made[variant].without_graph()
        out[variant] = {**timing.as_dict(), "peak_bytes": peak_bytes(runs[variant])}
    return out


def engines_agree() -> dict[str, Any]:
    """Compare both engines on the GPU: features and gradients in float64, float32 and bf16."""
    with tf32(False):
        return _engines_agree()


def _engines_agree() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32), ("bf16", None)):
        clip = random_clip("ViT-B-32").to(DEVICE)
        if dtype is torch.float64:
            clip = clip.double()
        names = class_names(50)
        data = random_images(8, clip.image_size, len(names))
        images = (data.images.to(DEVICE).float() / 255).to(clip.dtype)
        labels = data.labels.to(DEVICE)
        got: dict[str, list[Tensor]] = {}
        for engine in ("reference", "fast"):
            prompts = DeepPrompts.for_clip(clip, N_CTX, refiners=True).to(clip.dtype)
            _perturb(prompts)
            model = PromptedCLIP(
                clip,
                names,
                prompts,
                engine=engine,
                precision=precision if engine == "fast" else "auto",
                compile=False,
            )
            pixels = images.clone().requires_grad_()
            logits = model(pixels)
            F.cross_entropy(logits, labels).backward()
            grads = [p.grad for p in prompts.parameters() if p.grad is not None]
            got[engine] = [logits.detach(), *grads, pixels.grad]  # type: ignore[list-item]
        pairs = zip(got["fast"], got["reference"], strict=True)
        out[precision] = max(difference(a, b) for a, b in pairs)
    if not (out["fp64"] <= 1e-10 and out["fp32"] <= 1e-5):
        raise RuntimeError(f"the engines differ: {out}")
    return out


@torch.no_grad()
def _perturb(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        noise = 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.add_(noise.to(parameter))


TASKS = (
    Task(
        "tests-kernels",
        "the kernels against the plain code, graphs, 2^31 entries",
        480,
        kernel_tests,
    ),
    Task("pgd-step", "256 pictures: at least 85 % of a copy's bandwidth", 90, pgd_bandwidth),
    Task("mixture", "router and mixture against eager and compiled torch code", 150, mixture),
    Task("attention", "shared prefix against fused attention over a copied one", 90, attention),
    Task("tests", "every other test marked gpu", 480, gpu_tests),
    Task(
        "attack",
        "PGD-10, ViT-B/16, batch 256, bf16: at least 45 % of the matmul rate, no gaps",
        240,
        attack_rate,
    ),
    Task("text-1000", "text tower, ImageNet's names, against 77 tokens", 90, text_tower),
    Task("step", "tuning step at NAP's published size, all rungs", 480, tuning_step),
    Task("agreement", "both engines, float64, float32, bf16", 90, engines_agree),
    Task("text-21000", "21,000 classes in chunks", 120, many_classes),
    Task("consistency", "both consistency losses against compiled torch code", 120, consistency),
    Task("sanitizer", "the kernels under compute-sanitizer, where it is installed", 480, sanitized),
)
