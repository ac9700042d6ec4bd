"""The README's table of the two engines, from the committed results of `text` and `step`.

python -m benchmarks.engines
"""

import json
from typing import Any

from .step import RESULT as STEP
from .text import RESULT as TEXT


def _seconds(result: dict[str, Any], rung: str) -> str:
    return f"{result['seconds'][rung]['median']:.2f} s"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x"


def table() -> str:
    """Markdown: seconds and memory of each rung, ratios of medians, and of FLOPs."""
    text, step = (json.loads(path.read_text(encoding="utf-8")) for path in (TEXT, STEP))
    memory, many = text["memory"], text["many_classes"]
    mebibytes = {rung: f"{size / 2**20:.0f} MiB" for rung, size in memory["peak_bytes"].items()}
    rows = [
        ["ViT-B-32 in float32, two CPU cores", "eager", "fastprompt", "ratio", "by FLOPs"],
        ["---"] * 5,
        [
            f"text tower, {text['settings']['classes']} classes, forward and backward",
            _seconds(text, "eager"),
            _seconds(text, "fastprompt"),
            _times(text["ratios"]["eager/fastprompt"]["medians"]),
            _times(text["flops_ratio"]),
        ],
        [
            "its peak memory above the weights",
            mebibytes["eager"],
            mebibytes["fastprompt"],
            _times(memory["ratio"]),
            "",
        ],
        [
            f"text tower, {many['classes']:,} classes in chunks of {many['class_chunk']}",
            "",
            f"{many['seconds']:.0f} s, {many['peak_bytes'] / 2**20:.0f} MiB",
            "",
            "",
        ],
    ]
    for rung, name in (("eager", ""), ("eager-hoisted", ", text features hoisted in eager")):
        pair = f"{rung}/fastprompt"
        rows.append(
            [
                f"tuning step, {step['settings']['classes']} classes, PGD-"
                f"{step['settings']['steps']}, deep prompts{name}",
                _seconds(step, rung),
                _seconds(step, "fastprompt"),
                _times(step["ratios"][pair]["medians"]),
                _times(step["flops_ratios"][pair]),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
