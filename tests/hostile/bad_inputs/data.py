"""`load_data`, random crops, imports of checkpoints and reports."""

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from fastprompt import load_data
from fastprompt.data.augment import RandomCrops
from fastprompt.interop import import_prompts, read_prompts
from fastprompt.methods.advpt_bank import _read
from fastprompt.report import write_report

from .models import FILES, saved
from .rows import COUNTS, FLAGS, NAN, NUMBERS, PATHS, SEEDS, World, each, row

_SIZES: dict[str, Any] = {
    **{kind: value for kind, value in COUNTS.items() if kind != "a string"},
    "words": "48",
    "15": 15,
    "one side": (48,),
    "three sides": (48, 48, 3),
    "a fraction in it": (48, 48.5),
}
_RESIZING: dict[str, Any] = {
    "a string": "squash",
    "a list": ["squash"],
    "another key": {"size": 48},
    "a typo": {"resize_mode": "squashed"},
    "no mode": {"resize_mode": None},
    "another interpolation": {"interpolation": "nearest"},
    "a color": {"fill_color": 256},
    "a fraction": {"fill_color": 0.5},
}
ROWS = [
    *each("load_data", "shots", lambda w, v: load_data("shapes", shots=v), COUNTS),
    *each("load_data", "seed", lambda w, v: load_data("shapes", seed=v), SEEDS),
    *each("load_data", "image_size", lambda w, v: load_data("shapes", image_size=v), _SIZES),
    *each("load_data", "channels", lambda w, v: load_data("shapes", channels=v), COUNTS),
    *each("load_data", "download", lambda w, v: load_data("shapes", download=v), FLAGS),
    *each("load_data", "data", lambda w, v: load_data(v), PATHS),
    *each("load_data", "root", lambda w, v: load_data("shapes", root=v), PATHS),
    *each(
        "load_data",
        "classes",
        lambda w, v: load_data("shapes", classes=v),
        {"a typo": "bas", "a number": 3, "a list": ["base"], "None": None},
        "'base'",
    ),
    *each("load_data", "preprocess", lambda w, v: load_data("shapes", preprocess=v), _RESIZING),
    *each(
        "load_data",
        "unseen_by",
        lambda w, v: load_data("photos", unseen_by=v),
        {"a typo": "tiny-photo", "a number": 3, "a list": ["tiny-photos"]},
        "'tiny-photos'",
    ),
    row(
        "load_data-unseen_by-of-other-data",
        lambda w: load_data("shapes", unseen_by="tiny-photos"),
        "unseen_by",
        "shapes",
    ),
    row("load_data-coop-a-typo", lambda w: load_data("coop:DTDs", root=w.folder), "data", "DTD"),
    row("load_data-coop-no-name", lambda w: load_data("coop:", root=w.folder), "data", "known"),
    row("load_data-coop-absent", lambda w: load_data("coop:DTD", root=w.folder), "data", "root"),
    row("load_data-coop-nowhere", lambda w: load_data("coop:DTD", root="/no/such"), "data", "root"),
    row(
        "load_data-a-manifest-of-a-lost-picture",
        lambda w: load_data(w.file("a.csv", "path,classname\nno.png,ant\n")),
        "data",
        "line 2",
    ),
    row("load_data-no-manifest", lambda w: load_data("no.csv"), "data", "manifest"),
    row("load_data-a-manifest-of-numbers", lambda w: load_data(_numbers(w)), "classnames"),
    row("load_data-an-empty-mapping", lambda w: load_data({}), "data", "path"),
    row("load_data-hf-no-name", lambda w: load_data("hf:"), "data"),
    row("load_data-a-typo", lambda w: load_data("shape"), "data", "shapes"),
    row("load_data-a-surrogate", lambda w: load_data("shapes\ud800"), "data"),
    row("load_data-no-such-folder", lambda w: load_data("/no/such/folder"), "data", "folder"),
    row("load_data-a-file", lambda w: load_data(w.file("a")), "data"),
    row("load_data-an-empty-folder", lambda w: load_data(w.folder), "data", "folder"),
    row("load_data-no-torchvision-set", lambda w: load_data("DTD", root=w.folder), "data", "DTD"),
    row("load_data-two-images", lambda w: load_data(_pictures(w, 1)).test, "data", "too few"),
    row(
        "load_data-a-broken-image",
        lambda w: load_data(_pictures(w, 9, b"\x89PNG broken")).train[0],
        "data",
        "unreadable",
    ),
]


def _pictures(w: World, each_class: int, content: bytes | None = None) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    for name in ("cat", "dog"):
        for i in range(each_class):
            path = w.file(f"pictures/{name}/{i}.png", content or file.getvalue())
    return path.parents[1]


def _numbers(w: World) -> Any:
    _pictures(w, 1)
    rows = "pictures/cat/0.png,0\npictures/dog/0.png,1\n"
    return w.file("numbers.csv", f"path,label\n{rows}")


_PAIRS: dict[str, Any] = {
    "a number": 0.5,
    "a string": "ab",
    "None": None,
    "three": (0.1, 0.2, 0.3),
    "falling": (0.9, 0.1),
    "zero": (0, 1),
    "NaN": (NAN, 1),
    "words": ("a", "b"),
}
ROWS += [
    *each("RandomCrops", "scale", lambda w, v: RandomCrops(scale=v), _PAIRS),
    *each("RandomCrops", "ratio", lambda w, v: RandomCrops(ratio=v), _PAIRS),
    *each("RandomCrops", "flip", lambda w, v: RandomCrops(flip=v), FLAGS),
    *each("RandomCrops", "seed", lambda w, v: RandomCrops(seed=v), SEEDS),
    *each("RandomCrops", "n", lambda w, v: RandomCrops().draw(v, 0), COUNTS, without=("zero",)),
    row("RandomCrops-boxes", lambda w: RandomCrops()(w.images, torch.zeros(1, 5)), "boxes"),
    row("RandomCrops-images", lambda w: RandomCrops()([1], torch.zeros(1, 5)), "images"),
]
assert NUMBERS

# ---- checkpoints -------------------------------------------------------------------------------

ROWS += [
    row(
        f"read_prompts-file-{kind}",
        lambda w, c=content: read_prompts(w.file("model.pth.tar-5", c())),
        "path",
        word,
    )
    for kind, (content, word) in FILES.items()
]
_CTX = torch.zeros(2, 24)
_STATES: dict[str, tuple[Any, str]] = {
    "a list": ([1], "checkpoint"),
    "a number": (3, "checkpoint"),
    "empty": ({}, "no prompts"),
    "state_dict a list": ({"state_dict": [1]}, "state_dict"),
    "integer keys": ({1: _CTX}, "no prompts"),
    "ctx a number": ({"ctx": 3}, "no prompts"),
    "ctx a scalar": ({"ctx": torch.tensor(1.0)}, "ctx"),
    "ctx empty": ({"ctx": torch.zeros(0, 24)}, "ctx"),
    "ctx of integers": ({"ctx": torch.zeros(2, 24, dtype=torch.int64)}, "ctx"),
    "ctx sparse": ({"ctx": _CTX.to_sparse()}, "ctx"),
    "ctx NaN": ({"ctx": _CTX * NAN}, "ctx"),
    "ctx expanded": ({"ctx": torch.zeros(1).expand(2, 10**9)}, "ctx"),
    "ctx of four dimensions": ({"ctx": torch.zeros(1, 1, 2, 24)}, "ctx"),
    "an unknown tensor": ({"ctx": _CTX, "prompt_learner.meta_net.a": _CTX}, "ctx"),
    "a suffix of another width": ({"ctx": _CTX, "token_suffix": torch.zeros(3, 5, 9)}, "suffix"),
    "classes that differ": (
        {"ctx": torch.zeros(2, 2, 24), "token_prefix": torch.zeros(3, 1, 24)},
        "classes",
    ),
    "deep prompts without maps": (
        {"ctx": _CTX, "compound_prompts_text.0": _CTX},
        "incomplete",
    ),
    "deep prompts with a gap": (
        {
            "ctx": _CTX,
            "proj.weight": torch.zeros(32, 24),
            "proj.bias": torch.zeros(32),
            "compound_prompts_text.1": _CTX,
        },
        "number 0",
    ),
}
ROWS += [
    row(
        f"read_prompts-{kind}",
        lambda w, s=state: read_prompts(w.file("model.pth.tar-5", saved(s))),
        "path",
        word,
    )
    for kind, (state, word) in _STATES.items()
]
ROWS += [
    *each("read_prompts", "path", lambda w, value: read_prompts(value), PATHS),
    row("read_prompts-missing", lambda w: read_prompts("no.pt"), "path", "no.pt"),
    row("read_prompts-folder", lambda w: read_prompts(w.folder), "path", "folder"),
]


def _import(w: World, state: Any = None, names: Any = ("a", "b"), **options: Any) -> object:
    file = w.file("out/prompt_learner/model.pt", saved({"ctx": _CTX} if state is None else state))
    return import_prompts(file, w.clip, names, **options)


ROWS += [
    row("import-without-names", lambda w: _import(w, names=None), "classnames"),
    row("import-names-a-string", lambda w: _import(w, names="cat"), "classnames"),
    row("import-names-twice", lambda w: _import(w, names=["a", "a"]), "classnames"),
    row("import-method-typo", lambda w: _import(w, method="apd"), "method", "'apt'"),
    row("import-method-nap", lambda w: _import(w, method="nap"), "method", "'apt'"),
    row("import-method-number", lambda w: _import(w, method=3), "method"),
    row("import-template-bare", lambda w: _import(w, template="a cat"), "template"),
    row("import-template-number", lambda w: _import(w, template=3), "template"),
    row("import-setting-unknown", lambda w: _import(w, epoch=3), "epoch"),
    row("import-setting-decided", lambda w: _import(w, n_ctx=3), "n_ctx", "omit"),
    row("import-clip-none", lambda w: import_prompts("a.pt", None), "model"),
    row("import-other-width", lambda w: _import(w, {"ctx": torch.zeros(2, 99)}), "clip", "99"),
    row(
        "import-number-of-classes",
        lambda w: _import(w, {"ctx": torch.zeros(3, 2, 24)}),
        "classnames",
        "3",
    ),
    row(
        "import-words-of-another-model",
        lambda w: _import(w, {"ctx": _CTX, "token_suffix": torch.ones(2, 74, 24)}),
        "token_suffix",
    ),
    row(
        "import-log-of-two-runs",
        lambda w: (
            w.file("out/log.txt", "CLASS_TOKEN_POSITION: end\nCLASS_TOKEN_POSITION: middle"),
            _import(w),
        ),
        "template",
        "log.txt",
    ),
]

# ---- AdvPT's banks -----------------------------------------------------------------------------

_N, _D = 2, 16
_BANK = {
    "features": torch.zeros(_N, _D),
    "labels": torch.zeros(_N, dtype=torch.int64),
    "zero": torch.zeros(_N, dtype=torch.int64),
    "nonfinite": torch.zeros(_N, dtype=torch.int64),
    "entries": torch.ones(1, dtype=torch.int64),
}
_BANKS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "no tensors": lambda: {},
    "other names": lambda: {"a": torch.zeros(1)},
    "a further name": lambda: {**_BANK, "a": torch.zeros(1)},
    "no labels": lambda: {k: v for k, v in _BANK.items() if k != "labels"},
    "scalars": lambda: {k: v.flatten()[0].clone() for k, v in _BANK.items()},
    "features of one dimension": lambda: {**_BANK, "features": torch.zeros(_N)},
    "features of integers": lambda: {**_BANK, "features": torch.zeros(_N, _D, dtype=torch.int64)},
    "a label too few": lambda: {**_BANK, "labels": torch.zeros(1, dtype=torch.int64)},
    "labels of 0.5": lambda: {**_BANK, "labels": torch.full((_N,), 0.5)},
    "no entries": lambda: {**_BANK, "entries": torch.zeros(0, dtype=torch.int64)},
}


def _bank(w: World, tensors: dict[str, torch.Tensor]) -> object:
    from fastprompt._utils.files import write_tensors

    path = w.folder / "bank.safetensors"
    write_tensors(path, tensors, {"kind": "bank", "key": "k"})
    return _read(path, "k", _N)


ROWS += [
    row(f"bank-signed-again-{kind}", lambda w, t=tensors: _bank(w, t()), "bank.safetensors")
    for kind, tensors in _BANKS.items()
]
ROWS += [
    row(
        f"bank-{kind}",
        lambda w, c=content: _read(w.file("b.safetensors", c), "k", _N),
        "b.safetensors",
    )
    for kind, content in {
        "empty": b"",
        "binary": bytes(range(256)),
        "of another kind": save({"a": torch.zeros(1)}),
    }.items()
]

# ---- reports -----------------------------------------------------------------------------------

ROWS += [
    row("write_report-nothing", lambda w: write_report([]), "runs", "empty"),
    row("write_report-none", lambda w: write_report(None), "runs"),
    row("write_report-a-number", lambda w: write_report([3]), "runs"),
    row("write_report-missing", lambda w: write_report(w.folder / "no"), "runs", "no"),
    row("write_report-a-file", lambda w: write_report(w.file("a")), "runs", "file"),
    row("write_report-no-result", lambda w: write_report(w.folder), "result.json"),
    row("write_report-out-suffix", lambda w: write_report(w.runs / "nap", "a.pdf"), "out", ".html"),
    row("write_report-out-a-folder", lambda w: write_report(w.runs / "nap", w.folder), "out"),
    row(
        "write_report-out-below-a-file",
        lambda w: write_report(w.runs / "nap", w.file("a") / "a.html"),
        "out",
    ),
    *each("write_report", "out", lambda w, v: write_report(w.runs / "nap", v), PATHS),
]
