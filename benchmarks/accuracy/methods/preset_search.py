"""Search for the bundled models' presets on validation images; records every attempt."""

from __future__ import annotations

import json
import time
from typing import Any

from fastprompt import evaluate, load_clip, load_data
from fastprompt.methods.registry import TUNERS

from ...common.paths import TWO_CORES
from ...common.report import write
from .cells import BASE_EPS
from .run import PRECISION, SHOTS

RESULT = TWO_CORES / "method_sweep.json"
# settings of all attempts; each attempt records its changes
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


def attempt(method: str, model: str, changes: str) -> None:
    """Tune once, evaluate on a sample of the validation images, and add a row to the record.

    Args:
        changes: settings in addition to `BASE` and `THEN`, as JSON.
    """
    clip, changed = load_clip(model), json.loads(changes)
    settings = {**BASE, **THEN.get(method, {}), **changed}
    data = load_data("shapes", shots=SHOTS, seed=settings.get("seed", 0))
    began = time.perf_counter()
    tuner = TUNERS[method](clip, data.classnames, **settings).fit(data.train, progress=False)
    seconds = round(time.perf_counter() - began, 1)
    rows = evaluate(
        tuner.classifier_for(precision="fp32"),
        load_data("shapes").val,
        ["clean", ATTACK],
        ["1/255", "2/255"],
        batch=IMAGES,
        limit=IMAGES,
        sanity="off",
    ).rows
    found = {f"{r['attack']}@{255 * r['eps']:.0f}": round(100 * r["accuracy"], 1) for r in rows}
    row = {"method": method, "model": model, "changes": changed, "seconds": seconds, **found}
    print(row, flush=True)
    known = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    facts = {"base": BASE, "images": IMAGES, "attack": ATTACK, "shots": SHOTS}
    write(RESULT, {**known, **facts, "attempts": [*known.get("attempts", []), row]})
