"""Agreement of the fast and the reference engine on a GPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.deep import DeepPrompts

from ..common.gpu_timing import DEVICE, tf32
from ..common.models import class_names, random_clip
from ..common.notes import note
from ..common.timing import difference
from ..common.tuner_steps import random_images

N_CTX = 16


def engines_agree(classes: int = 50) -> dict[str, Any]:
    """Compare both engines on the GPU: features and gradients in float64, float32 and bf16."""
    with tf32(False):
        return _engines_agree(classes)


def _engines_agree(classes: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32), ("bf16", None)):
        clip = random_clip("ViT-B-32").to(DEVICE)
        if dtype is torch.float64:
            clip = clip.double()
        names = class_names(classes)
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
        note(precision, out[precision])
    if not (out["fp64"] <= 1e-10 and out["fp32"] <= 1e-5):
        raise RuntimeError(f"the engines differ: {out}")
    return out


@torch.no_grad()
def _perturb(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        noise = 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.add_(noise.to(parameter))
