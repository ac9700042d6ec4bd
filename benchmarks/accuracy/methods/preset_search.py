"""Search for the bundled models' presets on validation images; records every attempt.

python -m benchmarks.accuracy methods attempt nap tiny-shapes '{"lr": 0.001}'
python -m benchmarks.accuracy methods attempt apt tiny-photos '{"lr": 0.001}' --data photos
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fastprompt import evaluate, load_clip, load_data
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.config import as_dict

from ...common.paths import TWO_CORES
from ...common.report import write
from .cells import BASE_EPS
from .run import PRECISION, SHOTS, Study

RESULTS: dict[Study, Path] = {
    "shapes": TWO_CORES / "method_sweep.json",
    "photos": TWO_CORES / "method_sweep_photos.json",
}
# settings of all attempts in addition to the preset; each attempt records its changes
BASE: dict[str, Any] = {
    "n_ctx": 4,
    "ctx_init": "a photo of a",
    "eps": BASE_EPS,
    "augment": False,
    "keep": "last",
    "warmup_epochs": 0,
    "precision": PRECISION,
}
# defaults that have changed since the recorded attempts
THEN: dict[str, dict[str, Any]] = {"capt": {"ce": "adv"}}
IMAGES, ATTACK = 400, "pgd-20"


def attempt(method: str, model: str, changes: str, data: Study = "shapes") -> None:
    """Tune once, evaluate on a sample of the validation images, and add a row to the record.

    Args:
        method: a tuner's name, or ``"zero-shot"``, which tunes nothing.
        changes: settings in addition to the preset and, on shapes, to `BASE` and `THEN`, as JSON.
        data: data set, and with it the record.
    """
    clip, changed = load_clip(model), json.loads(changes)
    base, then = (BASE, THEN) if data == "shapes" else ({"precision": PRECISION}, {})
    settings = {**base, **then.get(method, {}), **changed}
    drawn = load_data(data, shots=SHOTS, seed=settings.get("seed", 0))
    began, facts = time.perf_counter(), {}
    if method == "zero-shot":
        classifier = clip.zero_shot(drawn.classnames, drawn.templates)
    else:
        tuner = TUNERS[method](clip, drawn.classnames, **settings)
        # presets change: the row has all that was set
        facts = {"config": as_dict(tuner.config)}
        classifier = tuner.fit(drawn.train, progress=False).classifier_for(precision="fp32")
    seconds = round(time.perf_counter() - began, 1)
    rows = evaluate(
        classifier,
        load_data(data).val,
        ["clean", ATTACK],
        ["1/255", "2/255"],
        batch=IMAGES,
        limit=IMAGES,
        sanity="off",
        progress=False,
    ).rows
    found = {f"{r['attack']}@{255 * r['eps']:.0f}": round(100 * r["accuracy"], 1) for r in rows}
    row = {"method": method, "model": model, "changes": changed, "seconds": seconds, **found}
    print(row, flush=True)
    result = RESULTS[data]
    known = json.loads(result.read_text("utf-8")) if result.exists() else {}
    about = {"base": base, "images": IMAGES, "attack": ATTACK, "shots": SHOTS}
    write(result, {**known, **about, "attempts": [*known.get("attempts", []), {**row, **facts}]})
