"""The tasks of `benchmarks.gpu`, the most valuable first."""

import subprocess
import sys
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt import FrozenCLIP
from fastprompt.attacks import OnlinePGD
from fastprompt.prompted import PromptedCLIP
from fastprompt.prompts import DeepPrompts, TextContext
from fastprompt.towers import ReferenceTextTower, TextTower

from .gpu import ROOT, Task
from .gpu_kernels import attention, consistency, mixture, pgd_bandwidth, sanitised
from .gpu_timing import DEVICE, busy_share, event_seconds, matmul_rate, peak_bytes, tf32
from .models import class_names, composed_names, random_clip
from .rungs import RUNGS, Rung, gate_results, random_batch
from .timing import count_flops, difference, gate

N_CTX = 16


PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
LAUNCH = "tests/kernels/launch"


def gpu_tests() -> dict[str, Any]:
    """Every test marked ``gpu`` but those of the kernels, in a process of its own."""
    command = [*PYTEST, f"--ignore={LAUNCH}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=450)
    if done.returncode:
        raise RuntimeError(done.stdout[-6000:] + done.stderr[-2000:])
    return {"summary": done.stdout.strip().splitlines()[-1]}


def kernel_tests() -> dict[str, Any]:
    """The kernels against the plain code: files side by side, as most of it is compilation."""
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
    """PGD-10 on ViT-B/16 in bf16: images a second, and the share of the measured matmul rate."""
    clip = random_clip("ViT-B-16").to(DEVICE)
    rate = matmul_rate(torch.bfloat16)
    data = random_batch(batch, clip.image_size, 100).to(DEVICE)
    out: dict[str, Any] = {"batch": batch, "steps": steps, "bf16_matmul_flops": rate}
    for compiled in (False, True):
        prompts = TextContext(N_CTX, 512).to(DEVICE)
        model = PromptedCLIP(clip, class_names(100), prompts, precision="bf16", compile=compiled)
        prepared = model.prepare()
        for captured in (False, True):
            attack = OnlinePGD(model, "4/255", "1/255", steps, capture=captured)

            def run(attack: OnlinePGD = attack, prepared: Any = prepared) -> Tensor:
                return attack(data.images, data.labels, data.indices, prepared).images

            seconds = event_seconds(run, 5)
            flops = count_flops(run) if not (compiled or captured) else out["flops"]
            out["flops"] = flops
            out[f"compile={compiled}, graph={captured}"] = {
                "seconds": seconds,
                "images_per_second": batch / seconds,
                "matmul_share": flops / seconds / rate,
                "busy_share": busy_share(run),
            }
            if not captured:  # a replay's memory is in the graph's pool, where it is not seen
                out[f"compile={compiled}, graph={captured}"]["peak_bytes"] = peak_bytes(run)
    return out


def text_tower() -> dict[str, Any]:
    """ViT-B-32's text tower on ImageNet's names, forward and backward, in float32."""
    clip = random_clip("ViT-B-32").to(DEVICE)
    context = (0.02 * torch.randn(N_CTX, 512)).to(DEVICE).requires_grad_()
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))
    towers = {
        "eager": ReferenceTextTower(clip, names, N_CTX),
        "fastprompt": TextTower(clip, names, N_CTX, dtype=torch.float32),
        "fastprompt, bf16": TextTower(clip, names, N_CTX, dtype=torch.bfloat16),
    }
    out: dict[str, Any] = {"classes": len(names)}
    features: dict[str, Tensor] = {}
    for rung, tower in towers.items():

        def step(tower: Any = tower) -> Tensor:
            return torch.autograd.grad(tower(context).float().square().sum(), context)[0]

        features[rung] = tower(context).detach().float()
        out[rung] = {
            "seconds": event_seconds(step, 2 if rung == "eager" else 20),
            "peak_bytes": peak_bytes(step),
            "difference": difference(features[rung], features["eager"]),
        }
    out["ratio"] = out["eager"]["seconds"] / out["fastprompt"]["seconds"]
    out["memory_ratio"] = out["eager"]["peak_bytes"] / out["fastprompt"]["peak_bytes"]
    return out


def many_classes(classes: int = 21_000) -> dict[str, Any]:
    """The same with 21,000 names, in chunks."""
    clip = random_clip("ViT-B-32").to(DEVICE)
    context = (0.02 * torch.randn(N_CTX, 512)).to(DEVICE).requires_grad_()
    out: dict[str, Any] = {"classes": classes}
    for chunk in (1000, 4000, None):
        tower = TextTower(clip, composed_names(classes), N_CTX, class_chunk=chunk)

        def step(tower: TextTower = tower) -> Tensor:
            return torch.autograd.grad(tower(context).square().sum(), context)[0]

        out[f"chunk {tower.class_chunk}{'' if chunk else ' (default)'}"] = {
            "seconds": event_seconds(step, 2, warmup=1),
            "peak_bytes": peak_bytes(step),
        }
    return out


def gate_small(clip: FrozenCLIP) -> None:
    """Equal losses and gradients of all rungs on a few classes, before anything is timed."""
    data = random_batch(4, clip.image_size, 20, 2).to(DEVICE)
    prompts = DeepPrompts.for_clip(clip, N_CTX)
    rungs = {
        name: kind(clip, class_names(20), prompts, data, precision="fp32", compile=False)
        for name, kind in RUNGS.items()
    }
    gate(gate_results(rungs))


def tuning_step(
    name: str = "ViT-B-16", classes: int = 1000, batch: int = 32, steps: int = 5
) -> dict[str, Any]:
    """A step at NAP's published size, every rung; the fast one also in bf16, compiled, captured."""
    clip = random_clip(name).to(DEVICE)
    names = class_names(classes)
    data = random_batch(batch, clip.image_size, classes, steps).to(DEVICE)
    out: dict[str, Any] = {"classes": classes, "batch": batch, "steps": steps}

    def timed(kind: type[Rung], **options: Any) -> dict[str, float]:
        rung = kind(clip, names, DeepPrompts.for_clip(clip, N_CTX), data, **options)
        seconds = event_seconds(rung.step, 3, warmup=2)
        # a replay's memory is in the graph's pool, where it is not seen
        rung.pgd = OnlinePGD(rung.model, data.eps, data.alpha, data.steps, capture=False)
        return {"seconds": seconds, "peak_bytes": peak_bytes(rung.step)}

    with tf32(False):
        gate_small(clip)

    for rung, kind in RUNGS.items():
        out[rung] = timed(
            kind, **({"precision": "fp32", "compile": False} if rung == "fastprompt" else {})
        )
    with tf32(True):
        out["eager-hoisted, TF32"] = timed(RUNGS["eager-hoisted"])
    out["fastprompt, bf16"] = timed(RUNGS["fastprompt"], precision="bf16", compile=False)
    out["fastprompt, bf16, compiled"] = timed(RUNGS["fastprompt"], precision="bf16", compile=True)
    for rung in [k for k in out if k.startswith("fastprompt")]:
        out[f"eager / {rung}"] = out["eager"]["seconds"] / out[rung]["seconds"]
    return out


def agreement() -> dict[str, Any]:
    """Both engines on the GPU: features and gradients in float64, float32 and bf16."""
    with tf32(False):
        return _agreement()


def _agreement() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32), ("bf16", None)):
        clip = random_clip("ViT-B-32").to(DEVICE)
        if dtype is torch.float64:
            clip = clip.double()
        names = class_names(50)
        data = random_batch(8, clip.image_size, len(names)).to(DEVICE)
        images, labels = data.images.to(clip.dtype), data.labels
        got: dict[str, list[Tensor]] = {}
        for engine in ("reference", "fast"):
            prompts = DeepPrompts.for_clip(clip, N_CTX, refiners=True).to(clip.dtype)
            _perturb(prompts)
            model = PromptedCLIP(
                clip,
                names,
                prompts,
                engine=engine,
                precision=precision if engine == "fast" else None,
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
    Task("step", "tuning step at NAP's published size, all rungs", 420, tuning_step),
    Task("agreement", "both engines, float64, float32, bf16", 90, agreement),
    Task("text-21000", "21,000 classes in chunks", 120, many_classes),
    Task("consistency", "both consistency losses against compiled torch code", 120, consistency),
    Task("sanitizer", "the kernels under compute-sanitizer, where it is installed", 480, sanitised),
)
