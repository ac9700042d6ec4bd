"""An estimate of NAP's step on an H100 by its parts, on paper, beside the measured total.

Products take their FLOPs (`growth.flop_model`) at a rate; everything else takes the bytes that it
reads and writes at a bandwidth. A range of two rates and two ways of running pointwise operations
gives a range of times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.report import NOT_YET, markdown
from ..growth.flop_model import Sizes, terms
from ..ladder.gpu_demands import BF16, results_of

# NAP's published setting: ViT-B/16, ImageNet's names, PGD-5, deep prompts in all layers
PUBLISHED = Sizes(
    **{"eager": False, "classes": 1000, "batch": 32, "steps": 5, "prompts": 1, "n_ctx": 16},
    **{"depth": 12, "passes": 2, "keeps_layers": True, "refined": True, "router": 0},
    **{"features": 512, "text_width": 512, "text_layers": 12, "text_length": 77, "prefix": 17},
    **{"suffixes": 5576, "chunked": False},
    **{"image_width": 768, "image_layers": 12, "patches": 196, "pixels": 768},
)
BF16_BYTES = 2


@dataclass(frozen=True)
class Machine:
    """Assumed rates.

    Attributes:
        flops: per second, of bfloat16 products of these shapes.
        bandwidth: bytes per second.
        values: that the pointwise operations and the attention of a block read and write for one
            token, forward and backward, in widths.
        launch: seconds of a kernel that is too small to fill the card.
    """

    flops: float
    bandwidth: float
    values: int
    launch: float


# forward and backward, in widths: LayerNorms and residual sums 16 + 14 (8 + 8 if fused), GELU
# 8 + 12, attention 4 + 8, joining prompts and tokens 4
FASTER = Machine(flops=620e12, bandwidth=3.0e12, values=48, launch=2e-6)
SLOWER = Machine(flops=520e12, bandwidth=2.8e12, values=58, launch=5e-6)
TEXT_KERNELS = 13  # small ones of a text block, forward and backward, of deep prompts
# products of the patch embedding that `flop_model` does not count: three of halves instead of one
MORE_PRODUCTS = 2
# bytes of a pixel: read, written as halves (one of them twice), read; its gradient written in
# bfloat16 and in float32, read between; only in an attack
HALVES_BYTES, GRADIENT_BYTES = 4 + 6 + 6, 2 + 2 + 4
LEARNED_COPIES = 7  # gradient, weight and both moments of AdamW, read or written


def parts(s: Sizes, machine: Machine) -> dict[str, float]:
    """Return seconds by part of the step."""
    flops = terms(s)

    def products(*names: str) -> float:
        return sum(flops.get(name, 0.0) for name in names) / machine.flops

    def pointwise(tokens: float, layers: int, width: int) -> float:
        return tokens * layers * machine.values * width * BF16_BYTES / machine.bandwidth

    tokens = s.tokens + s.visual
    values = s.batch * s.patches * s.pixels
    pixels = values * 4
    passes = s.steps + s.passes
    halves = passes * MORE_PRODUCTS * 2 * values * s.image_width / machine.flops
    halves += values * (passes * HALVES_BYTES + s.steps * GRADIENT_BYTES) / machine.bandwidth
    attacked = pointwise(s.steps * s.batch * tokens, s.image_layers, s.image_width)
    seen = pointwise(s.passes * s.batch * tokens, s.image_layers, s.image_width)
    if not s.visual:
        seen /= 2  # no backward pass
    layers = s.keeps_layers * s.passes * s.batch * tokens * s.image_width * BF16_BYTES * s.depth
    text = pointwise(s.prompts * (s.prefix + s.suffixes), s.text_layers, s.text_width)
    refiners = s.refined * (s.depth - 1) * 4 * s.image_width**2
    maps = s.depth * s.text_width * s.image_width
    return {
        "attack: matrix products": products("attack's images", "attack's logits"),
        "attack: pointwise operations and attention": attacked,
        "attack: start, sign steps": (3 + 4 * s.steps) * pixels / machine.bandwidth,
        "patch embedding: pixels and weights in halves": halves,
        "loss: matrix products": products(
            "loss's images", "loss's logits", "prompt maps", "mixture"
        ),
        "loss: pointwise operations and attention": seen,
        "loss: consistency of the layers": 3 * layers / machine.bandwidth,
        "text: matrix products": products("text", "suffix attention"),
        "text: pointwise operations and attention": text,
        "text: launches": s.text_layers * TEXT_KERNELS * machine.launch,
        "optimizer": LEARNED_COPIES * 4 * (refiners + maps) / machine.bandwidth,
    }


def _range(low: float, high: float) -> str:
    return f"{1e3 * low:.1f} to {1e3 * high:.1f} ms"


def _measured(results: Path) -> str:
    found = []
    for card, result in results_of("step", results):
        rung: Mapping[str, Any] | None = next((result[n] for n in BF16 if n in result), None)
        found += [f"{1e3 * rung['median']:.0f} ms ({card})"] if rung else []
    return "; ".join(found) or NOT_YET


def table(results: Path) -> str:
    """Return a Markdown table of the parts, estimated, and of the step, estimated and measured."""
    low, high = parts(PUBLISHED, FASTER), parts(PUBLISHED, SLOWER)
    rows = [[name, _range(low[name], high[name]), ""] for name in low]
    total = f"**{_range(sum(low.values()), sum(high.values()))}**"
    rows.append(["the whole step", total, _measured(results)])
    assumed = "; ".join(
        f"{name}: {m.flops / 1e12:.0f} TFLOP/s, {m.bandwidth / 1e12:g} TB/s, {m.values} values a "
        f"width and token in a block, {1e6 * m.launch:.0f} µs a small kernel"
        for name, m in (("first number", FASTER), ("second number", SLOWER))
    )
    head = ["part of the step", "estimated, not measured", "measured"]
    return f"{markdown(head, rows)}\n\nAssumed on an H100: {assumed}."
