"""AdvPT on the bundled models and data with three seeds; source of the table in docs/bundled.md.

python -m benchmarks.accuracy advpt measure   # runs everything, writes the JSON file
python -m benchmarks.accuracy advpt table     # prints the Markdown table of the committed file
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fastprompt import AdvPTTuner, load_clip, load_data
from fastprompt._utils.files import write_json
from fastprompt._utils.versions import versions
from fastprompt.tuning.config import as_dict

from ..common.paths import TWO_CORES

RESULT = TWO_CORES / "advpt.json"
# model, data set, training images per class
CASES: tuple[tuple[str, str, Any], ...] = (
    ("tiny-shapes", "patterns", "all"),
    ("tiny-shapes-robust", "patterns", "all"),
    ("tiny-shapes", "shapes", 16),
)
ATTACKS = ("clean", "feature-pgd-40", "pgd-20")
PATHS = {
    "clean": "clean",
    "feature-pgd-40": "feature attack (transfer:image-encoder)",
    "pgd-20": "PGD-20 through the prompts (adaptive)",
}


def measure(seeds: Sequence[int] = (0, 1, 2), images: int = 250) -> None:
    """Tune with the presets for each seed (of shots, order and attacks) and write all results."""
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for model, name, shots in CASES:
        clip = load_clip(model)
        for seed in seeds:
            data = load_data(name, shots=shots, seed=seed)
            tuner = AdvPTTuner(clip, data.classnames, seed=seed)
            settings[f"{model}, {name}"] = as_dict(tuner.config)
            began = time.perf_counter()
            tuner.fit(data.train, progress=False)
            seconds = time.perf_counter() - began
            result = tuner.evaluate(
                data.test,
                ATTACKS,
                tuner.config.eps,
                templates=data.templates,
                limit=images,
                seed=seed,
            )
            more = {"clip": model, "data": name, "shots": shots, "seed": seed}
            rows += [{**more, "tuning_seconds": round(seconds, 1), **r} for r in result.rows]
            print(more, result.table(), sep="\n", flush=True)
            write_json(RESULT, {"rows": rows, "settings": settings, "versions": versions()})


def gains(
    path: Path = RESULT, attack: str = "feature-pgd-40"
) -> dict[tuple[str, str], list[float]]:
    """Return tuned minus zero-shot accuracy under ``attack``, by (model, data set), per seed."""
    rows = [r for r in json.loads(path.read_text("utf-8"))["rows"] if r["attack"] == attack]
    out: dict[tuple[str, str], list[float]] = {}
    for zero, tuned in zip(rows[::2], rows[1::2], strict=True):
        out.setdefault((zero["clip"], zero["data"]), []).append(
            tuned["accuracy"] - zero["accuracy"]
        )
    return out


def _cell(rows: list[dict[str, Any]], model: str) -> str:
    values = [100 * row["accuracy"] for row in rows if row["model"] == model]
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(path: Path = RESULT) -> str:
    """Return the Markdown table of a result file: mean and range over the seeds, in percent."""
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "| model | data | attack | eps | zero-shot | tuned |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for clip, name, _ in CASES:
        case = [r for r in result["rows"] if (r["clip"], r["data"]) == (clip, name)]
        for attack in ATTACKS:
            rows = [r for r in case if r["attack"] == attack]
            eps = f"{rows[0]['eps'] * 255:g}/255" if rows[0]["eps"] else ""
            cells = " | ".join(_cell(rows, model) for model in ("zero-shot", "tuned"))
            lines.append(f"| {clip} | {name} | {PATHS[attack]} | {eps} | {cells} |")
    return "\n".join(lines)


def main(what: Literal["measure", "table"]) -> None:
    """Measure, or print the table."""
    if what == "measure":
        measure()
    print(table())
