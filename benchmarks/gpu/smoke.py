"""First look at a GPU: its versions and rates, and a step of each method on two layers."""

import traceback
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from fastprompt._utils.versions import versions
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.online_pgd import OnlinePGD

from ..common.dry_run import DRY_RUN
from ..common.gpu_timing import DEVICE, copy_bandwidth, event_rounds
from ..common.limits import multiplying
from ..common.machine import clocks_now, facts
from ..common.models import two_layer_clip
from ..common.notes import note
from ..common.tuner_steps import NAMES, TunerStep, random_images

# those that attack the batch of a step: AdvPT attacks before, CoOp never
METHODS = tuple(m for m, tuner in TUNERS.items() if tuner.attacks_images and m != "advpt")
SETTINGS: dict[str, Any] = {"n_ctx": 2, "steps": 2, "compile": False}


def hardware(copied: int = 2**28) -> dict[str, Any]:
    """Measure the card: the copy's bandwidth and the rate of products; name its attention.

    Args:
        copied: float32 values that are copied.
    """
    out: dict[str, Any] = {"versions": versions(), "facts": facts(), "clocks": clocks_now()}
    note("versions", out)
    limit = multiplying(torch.bfloat16)
    out["bf16_matmul_flops"] = limit.amount / event_rounds({"": limit.run}, 5, None)[""]
    note("bf16_matmul_flops", out["bf16_matmul_flops"])
    out["copy_bytes_per_second"] = copy_bandwidth(copied)
    note("copy_bytes_per_second", out["copy_bytes_per_second"])
    out["clocks, after"] = clocks_now()
    out["attention"] = {
        "image tower": attention_backend(32, 12, 213, 64),
        "text tower": attention_backend(1, 8, 17, 64),
    }
    return out


def attention_backend(*shape: int) -> str:
    """Return the kernel that torch chooses for attention in bfloat16 with gradients."""
    q, k, v = (
        torch.zeros(*shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    return SDPBackend(torch._fused_sdp_choice(q, k, v)).name


def captured(attack: OnlinePGD) -> dict[str, Any]:
    """Return the number of an attack's CUDA graphs, and why there is none.

    Without memory there is no graph and no reason either: look at both.
    """
    ascent = attack._ascent
    return {"graphs": len(ascent._graphs), "failure": ascent.failure}


def smoke() -> dict[str, Any]:
    """Run a step of each method on two layers, then one in which any wait is an error.

    Raises:
        RuntimeError: with the tracebacks of the methods that failed.
    """
    out: dict[str, Any] = {}
    for method in METHODS:
        try:
            out[method] = _steps(method)
        except Exception:  # the other methods are still tried
            out[method] = {"error": traceback.format_exc()}
        note(method, out[method])
    failed = {m: found["error"] for m, found in out.items() if "error" in found}
    if failed:
        raise RuntimeError("\n".join(f"{m}: {error}" for m, error in failed.items()))
    return out


def _steps(method: str) -> dict[str, Any]:
    clip = two_layer_clip().to(DEVICE)
    data = random_images(4, clip.image_size, len(NAMES))
    step = TunerStep("fastprompt", method, clip, NAMES, data, **SETTINGS)
    step()  # kernels are compiled and the attack is captured: both wait
    batch = step.begin()  # copies the batch's order to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step.tuner.loss(batch)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = captured(step.tuner._attack)
    if not (DRY_RUN or found["graphs"]):
        why = found["failure"] or "out of memory"
        raise RuntimeError(f"the attack is not captured: {why}; the log has the traceback")
    return {"loss": float(loss.detach()), **found}
