"""`evaluate` and stored results."""

import json
from typing import Any

import torch
from torch.utils.data import DataLoader

from fastprompt import Evaluation, evaluate
from fastprompt.data import ImageTensors
from fastprompt.evaluation.plan import plan_attacks
from fastprompt.runners import Ray

from .rows import CHOICES, COUNTS, DISTANCES, FLAGS, PATHS, SEEDS, TEXTS, World, each, row


def _run(w: World, **options: Any) -> Evaluation:
    given = {"models": w.model, "data": w.data, "attacks": ["pgd-1"], "sanity": "off"}
    return evaluate(**{**given, "progress": False, **options})


def _with(name: str) -> Any:
    return lambda w, value: _run(w, **{name: value})


ROWS = [
    *each("evaluate", "batch", _with("batch"), COUNTS),
    *each("evaluate", "limit", _with("limit"), COUNTS),
    *each("evaluate", "samples", _with("samples"), COUNTS),
    *each("evaluate", "workers", _with("workers"), COUNTS, without=("zero",)),
    *each("evaluate", "seed", _with("seed"), SEEDS),
    *each("evaluate", "eps", _with("eps"), DISTANCES),
    *each("evaluate", "sanity", _with("sanity"), CHOICES, "'quick'"),
    *each("evaluate", "search_precision", _with("search_precision"), CHOICES, "'own'"),
    *each("evaluate", "confirm", _with("confirm"), FLAGS),
    *each("evaluate", "name", _with("name"), TEXTS),
    *each("evaluate", "out", _with("out"), PATHS),
    *each("evaluate", "stop", _with("stop"), FLAGS),
    *each("evaluate", "resume", _with("resume"), FLAGS),
    *each("evaluate", "progress", _with("progress"), FLAGS),
    *each("evaluate", "runner", _with("runner"), CHOICES, "'ray'"),
    *each("Ray", "workers", lambda w, value: Ray(workers=value), COUNTS),
    *each("Ray", "threads", lambda w, value: Ray(threads=value), COUNTS),
    *each("Ray", "address", lambda w, value: Ray(value), CHOICES),
    row("Ray-address-of-a-client", lambda w: Ray("ray://host:10001"), "address", "HOST:PORT"),
]

_ATTACKS = {
    "unknown": (["gpd-20"], "pgd-20"),
    "empty": ([], "empty"),
    "a number": (["pgd-1", 3], "string"),
    "None": (None, "None"),
    "no steps": (["pgd"], "pgd-N"),
    "zero steps": (["pgd-0"], "pgd-20"),
    "negative steps": (["pgd--5"], "pgd-"),
    "10**30 steps": ([f"pgd-{10**30}"], "at most"),
    "10**30 queries": ([f"square-{10**30}"], "at most"),
    "5000 digits": ["pgd-" + "9" * 5000, "short"],
    "Arabic digits": (["pgd-1\u0661"], "pgd-N"),
    "a surrogate": (["pgd-1\ud800"], "surrogate"),
    "no such surrogate": (["pgd-1@other"], "other"),
    "an empty name": ([""], "unknown"),
    "a mapping": ({"pgd": 1}, "list"),
}
ROWS += [
    row(f"evaluate-attacks-{kind}", lambda w, a=attacks: _run(w, attacks=a), word)
    for kind, (attacks, word) in _ATTACKS.items()
]
_RADII = {
    "empty": ([], "empty"),
    "zero for features": (0, "above 0"),
    "a list with None": (["4/255", None], "number"),
    "nested": ([["4/255"]], "number"),
    "an object": (object(), "number"),
}
ROWS += [
    row(
        f"plan-eps-{kind}",
        lambda w, e=eps: plan_attacks(["feature-pgd-2", "pgd-1"], e),
        "eps",
        word,
    )
    for kind, (eps, word) in _RADII.items()
]


class Items:
    """A map-style data set of given items."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


_IMAGE = torch.zeros(3, 48, 48, dtype=torch.uint8)
_DATA = {
    "none": (lambda w: None, "map-style"),
    "a list of nothing": (lambda w: [], "empty"),
    "a generator": (lambda w: (x for x in [1]), "map-style"),
    "images alone": (lambda w: w.images, "pairs"),
    "floats": (lambda w: Items((torch.zeros(3, 48, 48), 0)), "uint8"),
    "an array": (lambda w: Items((_IMAGE.numpy(), 0)), "uint8"),
    "a triple": (lambda w: Items((_IMAGE, 0, 0)), "pairs"),
    "a label of 0.5": (lambda w: Items((_IMAGE, 0.5)), "integers"),
    "a label of 0.5 later": (lambda w: Items((_IMAGE, 0), (_IMAGE, 0.5)), "integer"),
    "a label of 1.0": (lambda w: Items((_IMAGE, 1.0)), "integers"),
    "a label in words": (lambda w: Items((_IMAGE, "cat")), "integers"),
    "a bool as a label": (lambda w: Items((_IMAGE, True)), "integers"),
    "a label of None": (lambda w: Items((_IMAGE, None)), "integers"),
    "a tensor of 0.5": (lambda w: Items((_IMAGE, torch.tensor(0.5))), "integers"),
    "a negative label": (lambda w: Items((_IMAGE, -1)), "at least 0"),
    "a label outside the classes": (lambda w: Items((_IMAGE, 3)), "3"),
    "a loader that repeats": (
        lambda w: DataLoader(w.data, sampler=[0, 0], batch_size=2),
        "every image once",
    ),
    "a loader with collate": (
        lambda w: DataLoader(w.data, batch_size=2, collate_fn=list),
        "collate_fn",
    ),
}
ROWS += [
    row(f"evaluate-data-{kind}", lambda w, d=data: _run(w, data=d(w)), "", word)
    for kind, (data, word) in _DATA.items()
]
_MODELS = {
    "none": (lambda w: None, "models"),
    "empty": (lambda w: {}, "models"),
    "a class": (lambda w: torch.nn.Linear, "models"),
    "a number as a name": (lambda w: {1: w.model}, "models"),
    "a surrogate in a name": (lambda w: {"a\ud800": w.model}, "models"),
    "a name without a model": (lambda w: {"tuned": None}, "models"),
    "on meta": (lambda w: torch.nn.Linear(1, 1, device="meta"), "meta"),
    "probabilities": (lambda w: lambda x: w.model(x).softmax(1), "probabilities"),
    "one logit": (lambda w: lambda x: x.flatten(1)[:, :1], "logit"),
    "features": (lambda w: lambda x: x, "logit"),
    "a string": (lambda w: lambda x: "cat", "logits"),
}
ROWS += [
    row(f"evaluate-models-{kind}", lambda w, m=models: _run(w, models=m(w)), word)
    for kind, (models, word) in _MODELS.items()
]
_DEVICES = {"meta": "cpu", "cuda:99": "GPU", "mps": "Apple", "xla": "cpu", "tpu": "cpu", "": "cpu"}
ROWS += [
    row(f"evaluate-device-{device}", lambda w, d=device: _run(w, device=d), "device", word)
    for device, word in _DEVICES.items()
]
ROWS += [
    row("evaluate-device-number", lambda w: _run(w, device=0), "device"),
    row("evaluate-surrogates-list", lambda w: _run(w, surrogates=[w.model]), "surrogates"),
    row("evaluate-surrogates-none", lambda w: _run(w, surrogates={"a": None}), "surrogates"),
    row("evaluate-resume-without-out", lambda w: _run(w, resume=True), "resume", "out"),
    row("evaluate-out-a-file", lambda w: _run(w, out=w.file("out")), "out", "file"),
    row("evaluate-out-below-a-file", lambda w: _run(w, out=w.file("out") / "a"), "out"),
    row(
        "evaluate-feature-attack-of-a-function",
        lambda w: _run(w, attacks=["feature-pgd-1"]),
        "attack",
        "clip",
    ),
]

# ---- data sets in memory -----------------------------------------------------------------------

_TENSORS = {
    "floats": (lambda w: (w.images, w.labels), "images"),
    "none": (lambda w: (None, w.labels), "images"),
    "three dimensions": (lambda w: (w.data.images[0], w.labels), "images"),
    "float labels": (lambda w: (w.data.images, w.labels + 0.5), "labels"),
    "a list of labels": (lambda w: (w.data.images, [0, 1]), "labels"),
    "one label": (lambda w: (w.data.images, w.labels[:1]), "labels"),
    "negative labels": (lambda w: (w.data.images, w.labels - 5), "labels"),
}
ROWS += [
    row(f"ImageTensors-{kind}", lambda w, a=arguments: ImageTensors(*a(w)), word)
    for kind, (arguments, word) in _TENSORS.items()
]

# ---- result files ------------------------------------------------------------------------------

_RESULTS = {
    "empty": "",
    "binary": bytes(range(256)),
    "truncated": '{"format": 2, "rows": [',
    "a list": "[]",
    "another format": '{"format": 99, "rows": []}',
    "rows missing": '{"format": 2}',
    "rows a number": '{"format": 2, "rows": 3}',
    "nested": "[" * 100_000,
    "5000 digits": '{"format": ' + "9" * 5000 + "}",
}
ROWS += [
    row(
        f"Evaluation.load-{kind}",
        lambda w, c=content: Evaluation.load(w.file("result.json", c)),
        "result.json",
    )
    for kind, content in _RESULTS.items()
]
ROWS += [
    row("Evaluation.load-missing", lambda w: Evaluation.load(w.folder / "no.json"), "no.json"),
    row("Evaluation.load-folder", lambda w: Evaluation.load(w.folder), "path", "folder"),
    *each("Evaluation.load", "path", lambda w, value: Evaluation.load(value), PATHS),
]
_DAMAGE: dict[str, Any] = {
    "rows[0].flags": "2",
    "rows[0].n": 0,
    "rows[0].interval": [0],
    "rows[0].model": 3,
    "rows[0].fell_at": {"x": 1},
}


def _report(w: World, key: str, value: Any) -> None:
    from fastprompt.report import write_report

    result = json.loads((w.runs / "nap" / "result.json").read_text())
    result["rows"][0][key.partition(".")[2]] = value
    write_report(w.file("run/result.json", json.dumps(result)).parent)


ROWS += [
    row(f"report-{key}", lambda w, k=key, v=value: _report(w, k, v), key, "damaged")
    for key, value in _DAMAGE.items()
]
