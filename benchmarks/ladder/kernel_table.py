"""Prints the table of the kernels in docs/kernels.md, from the committed results.

python -m benchmarks.ladder.kernel_table

Missing results are shown as "not yet measured".
"""

import json
from pathlib import Path
from typing import Any

from ..common.paths import RESULTS
from ..common.report import NOT_YET
from .result_file import FILE, by_group, read


def _gpu(task: str, results: Path) -> dict[str, Any] | None:
    """Return a `benchmarks.gpu` task's result on any card, if there is one without an error."""
    for path in sorted(results.glob(f"*/gpu-{task}.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "error" not in found:
            return {"card": found["card"], **found["result"]}
    return None


def _row(what: str, against: str, demanded: str, measured: str) -> list[str]:
    return [what, against, demanded, measured]


def _cpu_rows() -> list[list[str]]:
    path = RESULTS / "cpu-2-cores" / FILE
    size = "b128-c1000-k8"
    ratio = by_group(read(path))[f"kernels/mixture_logits-fwd-bwd/{size}"]["fastprompt"].ratio
    entries = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    memory = next(e for e in entries if e["group"] == f"memory/mixture_logits/{size}")
    peaks = memory["extra_info"]["peak_bytes"]
    what = (
        "`mixture_logits`, two CPU cores, float32, 128 images, 1,000 classes, 8 prompts, width 512"
    )
    less = peaks["eager"] / peaks["fastprompt"]
    return [
        _row(what, "plain `[B, C, D]` form", "5x", f"{ratio:.1f}x"),
        _row("its peak memory above the inputs", "the same", "10x less", f"{less:.0f}x less"),
    ]


def _gpu_rows(results: Path) -> list[list[str]]:
    rows = []
    pgd, mixture = _gpu("pgd-step", results), _gpu("mixture", results)
    attention = _gpu("attention", results)
    measured = NOT_YET
    if pgd:
        measured = f"{100 * pgd['torch.float32']['share_of_copy']:.0f} % ({pgd['card']})"
    rows.append(
        _row("`pgd_step`, 256 pictures of 224 x 224", "a copy's bandwidth", "85 %", measured)
    )
    what = "`mixture_logits` in bfloat16, 256 images, 1,000 classes, 8 prompts, width 512"
    for rung, against, demanded in (
        ("compiled Gram", "`torch.compile` of the Gram form", "1.5x"),
        ("compiled plain", "`torch.compile` of the plain form", "3x"),
        ("eager plain", "the plain form", "20x"),
    ):
        measured = NOT_YET
        if mixture:
            measured = f"{mixture['torch.bfloat16']['ratios'][rung]:.1f}x ({mixture['card']})"
        rows.append(_row(what, against, demanded, measured))
    measured = NOT_YET
    if attention:
        ratio = attention["torch.bfloat16"]["ratios"]["copied prefix"]
        measured = f"{ratio:.1f}x ({attention['card']})"
    what = "`prefix_attention` in bfloat16, 1,000 classes, 8 heads, 17 prefix tokens"
    rows.append(_row(what, "fused attention over a copied prefix", "3x", measured))
    return rows


def table(results: Path = RESULTS) -> str:
    """Return the Markdown table: forward and backward, medians of interleaved rounds."""
    head = [_row("what", "against", "demanded", "measured"), ["---"] * 4]
    return "\n".join(f"| {' | '.join(r)} |" for r in [*head, *_cpu_rows(), *_gpu_rows(results)])


if __name__ == "__main__":
    print(table())
