"""`load_clip`, `FrozenCLIP`, classifiers, prompts, defenses and the functions in kernels."""

import copy
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from helpers.models import SMALL
from safetensors.torch import save

from fastprompt import (
    JPEG,
    BitDepth,
    DeepPrompts,
    Defended,
    GaussianSmoothing,
    PromptedCLIP,
    PromptMixture,
    RandomResizePad,
    TextContext,
    TokenRefiner,
    export,
    load_clip,
)
from fastprompt.clip.image_weights import load_image_weights
from fastprompt.defenses import parse_defenses

from .rows import CHOICES, COUNTS, INF, NAN, NUMBERS, PATHS, SEEDS, TEXTS, World, each, row

NAMES = ["cat", "dog", "fox"]


def saved(content: Any) -> bytes:
    """A file of `torch.save`."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def packed(data: bytes) -> bytes:
    """The same file with compressed entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def old_format(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


class Pickled:
    """What a checkpoint must not run."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


# as a checkpoint of anything
FILES: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "damaged"),
    "text": (lambda: b"hello", "damaged"),
    "binary": (lambda: bytes(range(256)) * 9, "damaged"),
    "truncated": (lambda: saved({"a": torch.ones(999)})[:2000], "damaged"),
    "a pickled function": (lambda: saved({"a": Pickled()}), "pickled"),
    "a pickled function in the old format": (lambda: old_format({"a": Pickled()}), "pickled"),
    "a zip of something else": (lambda: packed(saved({"a": 1})), "compressed"),
    "a zip bomb": (lambda: packed(saved({"a": torch.zeros(2_000_000)})), "compressed"),
    "an old file with a huge storage": (
        lambda: old_format({"a": torch.zeros(77_777)}).replace(
            (77_777).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little")
        ),
        "declares",
    ),
}

# ---- loading -----------------------------------------------------------------------------------

_MODELS = {
    "none": (None, "model"),
    "a number": (3, "model"),
    "bytes": (b"ViT-B-32", "model"),
    "empty": ("", "model"),
    "a typo": ("tiny-shape", "tiny-shapes"),
    "a surrogate": ("tiny\ud800", "model"),
    "another module": (torch.nn.Linear(1, 1), "visual"),
    "no such folder": ("local-dir:no-folder", "no-folder"),
    "an empty folder name": ("local-dir:", "path"),
    "no weight tag": ("ViT-B-32", "pretrained"),
}
ROWS = [
    row(f"load_clip-model-{kind}", lambda w, m=model: load_clip(m), "", word)
    for kind, (model, word) in _MODELS.items()
]
_STATS: dict[str, Any] = {
    "a string": "0.5",
    "a number": 0.5,
    "two values": [0.5, 0.5],
    "None in it": [0.5, None, 0.5],
    "NaN": [NAN] * 3,
    "infinite": [INF] * 3,
    "1e308": [1e308] * 3,
    "10**400": [10**400] * 3,
}
for name in ("mean", "std"):
    ROWS += each(
        "load_clip", name, lambda w, v, name=name: load_clip(w.clip.model, **{name: v}), _STATS
    )
ROWS += [
    row("load_clip-std-zero", lambda w: load_clip(w.clip.model, std=[0, 1, 1]), "std", "positive"),
    row("load_clip-tokenizer", lambda w: load_clip(w.clip.model, tokenizer=3), "tokenizer"),
    row("load_clip-source", lambda w: load_clip("tiny-shapes", source="keras"), "source"),
    row("load_clip-no-folder", lambda w: load_clip("a", source="transformers"), "model", "folder"),
    row("load_clip-empty-folder", lambda w: load_clip("", source="transformers"), "model"),
    row(
        "load_clip-transformers-size",
        lambda w: load_clip("a/b", image_size=48, source="transformers"),
        "image_size",
    ),
    row(
        "export-no-classifier",
        lambda w: export(w.clip, w.place / "a.pt2"),
        "model",
        "CLIPClassifier",
    ),
    row("export-suffix", lambda w: export(w.clip, w.place / "a.h5"), "path", ".pt2"),
    row("export-path", lambda w: export(w.clip, 3), "path"),
    row("export-format", lambda w: export(w.clip, w.place / "a.pt2", format="tf"), "format"),
    row("export-int8", lambda w: export(w.clip, w.place / "a.onnx", int8="yes"), "int8"),
    row("load_clip-twice", lambda w: load_clip(w.clip, mean=[0] * 3), "model", "mean"),
    row("load_clip-bundled-tag", lambda w: load_clip("tiny-shapes", "openai"), "pretrained"),
    row("load_clip-tag-of-an-object", lambda w: load_clip(w.clip.model, "a"), "pretrained"),
    row("load_clip-tag-typo", lambda w: load_clip("ViT-B-32", "openay"), "openai"),
    row("load_clip-tag-missing-file", lambda w: load_clip("ViT-B-32", "a.pt"), "pretrained"),
    row("load_clip-tag-a-folder", lambda w: load_clip("ViT-B-32", w.folder), "pretrained"),
    *each("load_clip", "pretrained", lambda w, v: load_clip("ViT-B-32", v), PATHS),
    *each(
        "load_clip", "image_weights", lambda w, v: load_clip(w.clip.model, image_weights=v), PATHS
    ),
]
ROWS += [
    row(
        f"load_clip-device-{device}",
        lambda w, d=device: load_clip(w.clip, device=d),
        "device",
        word,
    )
    for device, word in {
        "meta": "cpu",
        "cuda:99": "GPU",
        "mps": "Apple",
        "vulkan": "cpu",
        "gpu": "cpu",
        "": "cpu",
    }.items()
]
ROWS.append(row("load_clip-device-number", lambda w: load_clip(w.clip, device=0), "device"))


def _weights(w: World, content: Any) -> object:
    # `load_clip` calls it with a copy of the model; no row gets as far as changing it
    return load_image_weights(w.clip.model, content)


def _changed(**changes: Any) -> Callable[[World], dict[Any, Any]]:
    return lambda w: {**w.clip.model.visual.state_dict(), **changes}


_STATES: dict[str, tuple[Callable[[World], Any], str]] = {
    "a list": (lambda w: [1], "image_weights"),
    "empty": (lambda w: {}, "missing"),
    "integer keys": (lambda w: {1: torch.zeros(1), 2: torch.zeros(1)}, "missing"),
    "a mapping in a mapping": (lambda w: {"state_dict": {"model": {}}}, "missing"),
    "numbers": (lambda w: dict.fromkeys(w.clip.model.visual.state_dict(), 3), "missing"),
    "another shape": (_changed(proj=torch.zeros(2, 2)), "proj"),
    "integers": (lambda w: _changed(proj=w.clip.model.visual.proj.detach().int())(w), "proj"),
    "sparse": (lambda w: _changed(proj=w.clip.model.visual.proj.detach().to_sparse())(w), "proj"),
    "meta": (lambda w: _changed(proj=w.clip.model.visual.proj.detach().to("meta"))(w), "proj"),
    "NaN": (lambda w: _changed(proj=w.clip.model.visual.proj.detach() * NAN)(w), "finite"),
    "another tensor": (_changed(**{"conv1.bias": torch.zeros(2)}), "conv1.bias"),
}
ROWS += [
    row(f"image_weights-{kind}", lambda w, s=state: _weights(w, s(w)), "image_weights", word)
    for kind, (state, word) in _STATES.items()
]
ROWS += [
    row(
        f"image_weights-file-{kind}",
        lambda w, c=content: _weights(w, w.file("weights.pt", c())),
        "image_weights",
        word,
    )
    for kind, (content, word) in FILES.items()
]
ROWS += [
    row("image_weights-missing", lambda w: _weights(w, w.folder / "a.pt"), "image_weights"),
    row("image_weights-folder", lambda w: _weights(w, w.folder), "image_weights", "folder"),
    row(
        "image_weights-safetensors-truncated",
        lambda w: _weights(w, w.file("a.safetensors", save({"a": torch.ones(9)})[:-1])),
        "image_weights",
        "damaged",
    ),
    row(
        "pretrained-zip-bomb",
        lambda w: load_clip("ViT-B-32", w.file("a.pt", FILES["a zip bomb"][0]())),
        "pretrained",
        "compressed",
    ),
]

_BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "without text_cfg": lambda c: c["model_cfg"].pop("text_cfg"),
    "without vision_cfg": lambda c: c["model_cfg"].pop("vision_cfg"),
    "without embed_dim": lambda c: c["model_cfg"].pop("embed_dim"),
    "without model_cfg": lambda c: c.pop("model_cfg"),
    "text_cfg a list": lambda c: c["model_cfg"].update(text_cfg=[]),
    "embed_dim in words": lambda c: c["model_cfg"].update(embed_dim="16"),
    "an unknown key": lambda c: c["model_cfg"]["text_cfg"].update(zeal=1),
    "width in words": lambda c: c["model_cfg"]["text_cfg"].update(width="24"),
    "heads that do not divide": lambda c: c["model_cfg"]["text_cfg"].update(heads=5),
    "no heads": lambda c: c["model_cfg"]["text_cfg"].update(heads=0),
    "preprocess_cfg a number": lambda c: c.update(preprocess_cfg=3),
}


def _folder(w: World, content: str) -> object:
    return load_clip(f"local-dir:{w.file('clip/open_clip_config.json', content).parent}")


def _broken(w: World, change: Callable[[dict[str, Any]], Any]) -> object:
    config = {"model_cfg": copy.deepcopy(SMALL), "preprocess_cfg": {}}
    change(config)
    return _folder(w, json.dumps(config))


ROWS += [
    row(f"local-dir-{kind}", lambda w, c=change: _broken(w, c), "model")
    for kind, change in _BROKEN.items()
]
ROWS += [
    row(f"local-dir-config-{kind}", lambda w, c=content: _folder(w, c), "model", "json")
    for kind, content in {"empty": "", "a list": "[]", "nested": "[" * 100_000}.items()
]
ROWS += [
    row("local-dir-without-config", lambda w: load_clip(f"local-dir:{w.folder}"), "model", "json"),
    row("local-dir-without-weights", lambda w: _broken(w, lambda c: None), "model"),
]

# ---- using a model -----------------------------------------------------------------------------


def _shot(w: World, **options: Any) -> object:
    return w.clip.zero_shot(**{"classnames": NAMES, **options})


_CLASSNAMES = {"a string": "cat", "None": None, "empty": [], "twice": ["a", "a"], "a blank": [" "]}
_CLASSNAMES |= {"a surrogate": ["a\ud800"], "a NUL": ["a\0"], "a number": [3], "long": ["a " * 99]}
_TEMPLATES = {"empty": [], "None": None, "bare": ["a cat"], "two": ["{} {}"], **TEXTS}
ROWS += [
    *each("zero_shot", "classnames", lambda w, v: _shot(w, classnames=v), _CLASSNAMES),
    *each("zero_shot", "templates", lambda w, v: _shot(w, templates=v), _TEMPLATES),
    *each("zero_shot", "engine", lambda w, v: _shot(w, engine=v), CHOICES, "'fast'"),
    *each("zero_shot", "precision", lambda w, v: _shot(w, precision=v), CHOICES, "fp32"),
    row(
        "zero_shot-reference-in-fp64",
        lambda w: _shot(w, engine="reference", precision="fp64"),
        "precision",
    ),
    row("encode_text-a-string", lambda w: w.clip.encode_text("cat"), "texts", "list"),
    row("encode_text-a-number", lambda w: w.clip.encode_text([3]), "texts", "string"),
    row("encode_text-a-surrogate", lambda w: w.clip.encode_text(["\ud800"]), "texts"),
    row("encode_image-a-list", lambda w: w.clip.encode_image([1]), "images"),
    row("encode_image-bytes", lambda w: w.clip.encode_image(w.data.images), "images", "255"),
    row("encode_image-small", lambda w: w.clip.encode_image(w.images[..., :9]), "images", "48"),
    row("encode_image-gray", lambda w: w.clip.encode_image(w.images[:, :1]), "images", "channels"),
    row("routing_weights", lambda w: _shot(w).routing_weights(w.images), "router"),  # type: ignore[attr-defined]
]

# ---- prompts -----------------------------------------------------------------------------------

_PROMPTS: dict[type, dict[str, int]] = {
    TextContext: {"n_ctx": 2, "width": 4},
    DeepPrompts: {"depth": 1, "n_ctx": 2, "text_width": 4, "image_width": 4},
    PromptMixture: {"n_prompts": 2, "n_ctx": 2, "width": 4, "feature_width": 4},
    TokenRefiner: {"width": 4},
}
for kind, given in _PROMPTS.items():
    for name in given:
        ROWS += each(
            kind.__name__, name, lambda w, v, k=kind, g=given, n=name: k(**{**g, n: v}), COUNTS
        )
    ROWS += each(kind.__name__, "seed", lambda w, v, k=kind, g=given: k(**g, seed=v), SEEDS)
ROWS += each("TextContext", "classes", lambda w, v: TextContext(1, 2, classes=v), COUNTS)
ROWS += each("PromptMixture", "hidden", lambda w, v: PromptMixture(1, 1, 2, 2, hidden=v), COUNTS)
ROWS += each(
    "PromptMixture", "temperature", lambda w, v: PromptMixture(1, 1, 2, 2, temperature=v), NUMBERS
)
ROWS += each("PromptMixture", "mix", lambda w, v: PromptMixture(1, 1, 2, 2, mix=v), CHOICES)
ROWS += each("TokenRefiner", "start", lambda w, v: TokenRefiner(2, start=v), CHOICES)
ROWS += each("DeepPrompts", "coupling", lambda w, v: DeepPrompts(2, 1, 2, 2, coupling=v), CHOICES)
ROWS += each("DeepPrompts", "map_start", lambda w, v: DeepPrompts(2, 1, 2, 2, map_start=v), CHOICES)
_STARTS: dict[str, Any] = {
    "a list": [1.0],
    "integers": torch.ones(1, 4, dtype=torch.int64),
    "too many": torch.ones(3, 4),
    "another width": torch.ones(1, 5),
    "one dimension": torch.ones(4),
}
for kind in (TextContext, DeepPrompts, PromptMixture):
    given = _PROMPTS[kind]
    ROWS += each(kind.__name__, "start", lambda w, v, k=kind, g=given: k(**g, start=v), _STARTS)


def _prompted(w: World, prompts: Any = None, **options: Any) -> object:
    return PromptedCLIP(w.clip, NAMES, prompts or TextContext(1, 24), **options)


ROWS += [
    row("PromptedCLIP-prompts-a-module", lambda w: _prompted(w, torch.nn.ReLU()), "prompts"),
    row("PromptedCLIP-prompts-narrow", lambda w: _prompted(w, TextContext(1, 5)), "24"),
    row("PromptedCLIP-prompts-long", lambda w: _prompted(w, TextContext(77, 24)), "77"),
    row("PromptedCLIP-layers", lambda w: _prompted(w, layers=[7]), "layers"),
    *each("PromptedCLIP", "engine", lambda w, v: _prompted(w, engine=v), CHOICES),
    *each("PromptedCLIP", "precision", lambda w, v: _prompted(w, precision=v), CHOICES),
    *each("PromptedCLIP", "template", lambda w, v: _prompted(w, template=v), TEXTS, without=()),
    *each("PromptedCLIP", "class_chunk", lambda w, v: _prompted(w, class_chunk=v), COUNTS),
    *each("PromptedCLIP", "class_shards", lambda w, v: _prompted(w, class_shards=v), COUNTS),
    *each("DeepPrompts.for_clip", "n_ctx", lambda w, v: DeepPrompts.for_clip(w.clip, v), COUNTS),
    *each(
        "DeepPrompts.for_clip",
        "depth",
        lambda w, v: DeepPrompts.for_clip(w.clip, 1, depth=v),
        COUNTS,
    ),
]

# ---- defenses ----------------------------------------------------------------------------------

ROWS += [
    *each("JPEG", "quality", lambda w, v: JPEG(v), COUNTS),
    *each("JPEG", "gradient", lambda w, v: JPEG(gradient=v), CHOICES),
    *each("BitDepth", "bits", lambda w, v: BitDepth(v), COUNTS),
    *each("RandomResizePad", "low", lambda w, v: RandomResizePad(v), NUMBERS),
    *each("RandomResizePad", "high", lambda w, v: RandomResizePad(0.5, v), NUMBERS),
    *each("GaussianSmoothing", "sigma", lambda w, v: GaussianSmoothing(v), NUMBERS),
    *each("GaussianSmoothing", "kernel_size", lambda w, v: GaussianSmoothing(1, v), COUNTS),
    row("JPEG-quality-101", lambda w: JPEG(101), "quality", "at most 100"),
    row("BitDepth-bits-9", lambda w: BitDepth(9), "bits", "at most 8"),
    row("RandomResizePad-low-above-high", lambda w: RandomResizePad(0.9, 0.5), "low", "high"),
    row("GaussianSmoothing-even", lambda w: GaussianSmoothing(1, 4), "kernel_size", "odd"),
    row("JPEG-two-channels", lambda w: JPEG()(w.images[:, :2]), "images", "channels"),
    row("JPEG-bytes", lambda w: JPEG()(w.data.images), "images"),
    row("JPEG-a-list", lambda w: JPEG()([1]), "images"),
    row("Defended-class", lambda w: Defended(torch.nn.Linear, JPEG()), "classifier"),
    row("Defended-none", lambda w: Defended(None), "classifier"),
    row("Defended-name", lambda w: Defended(w.model, "jpeg"), "defenses"),
    row("Defended-list", lambda w: Defended(w.model, [JPEG()]), "defenses"),
]
_DEFENSES: dict[str, tuple[Any, str]] = {
    "empty": ("", "empty"),
    "none": (None, "defenses"),
    "a number": ([3], "defenses"),
    "a typo": ("jpg-75", "jpeg"),
    "quality in words": ("jpeg-high", "jpeg"),
    "quality 0": ("jpeg-0", "quality"),
    "quality 1_0": ("jpeg-1_0", "quality"),
    "quality 0x10": ("jpeg-0x10", "quality"),
    "quality 5000 digits": ("jpeg-" + "9" * 5000, "quality"),
    "bits 2.5": ("bits-2.5", "bits"),
    "three values": ("jpeg-1-2-3", "jpeg"),
    "no sigma": ("smooth", "smooth"),
    "sigma NaN": ("smooth-nan", "smooth"),
    "a surrogate": ("jpeg\ud800", "surrogate"),
}
ROWS += [
    row(f"parse_defenses-{kind}", lambda w, d=defenses: parse_defenses(d), "defense", word)
    for kind, (defenses, word) in _DEFENSES.items()
]
