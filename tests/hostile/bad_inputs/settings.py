"""Settings of the methods, their files, and the tuners."""

import dataclasses
import json
from typing import Any

from fastprompt import (
    AdvPTConfig,
    AMPTConfig,
    APTTuner,
    AutoTuner,
    CAPTConfig,
    NAPConfig,
    NAPTuner,
)
from fastprompt.tuning.config import read_config

from .rows import (
    CHOICES,
    COUNTS,
    DISTANCES,
    FLAGS,
    NAN,
    NUMBERS,
    PATHS,
    SEEDS,
    TEXTS,
    World,
    each,
    row,
)

# settings of all methods are tested on NAP alone
_COUNTS = {
    NAPConfig: (
        *("epochs", "batch", "accumulate", "patience", "n_ctx", "class_chunk", "steps"),
        "class_shards",
    ),
    AdvPTConfig: ("steps", "attack_batch"),
    CAPTConfig: ("depth",),
    AMPTConfig: ("n_prompts", "router_width"),
}
_ZERO = {NAPConfig: ("warmup_epochs", "workers"), AdvPTConfig: ("workers",)}
_NUMBERS = {
    NAPConfig: (
        *("lr", "momentum", "weight_decay", "warmup_lr", "adv_share", "crop_min", "trades_beta"),
    ),
    CAPTConfig: ("lam", "balance_value"),
    AMPTConfig: ("temperature", "clean_share", "load_balance"),
}
_CHOICES = {
    NAPConfig: (
        *("optimizer", "keep", "engine", "precision", "clamp", "refiner_start", "coupling"),
        *("map_start", "schedule", "consistency", "crops", "attack_loss", "objective"),
    ),
    AdvPTConfig: ("start", "clamp"),
    CAPTConfig: ("balance", "ce", "train_kl", "frozen_kl", "coupling"),
    AMPTConfig: ("mix",),
}
_FLAGS = {
    NAPConfig: ("drop_last", "augment", "random_start", "refiners", "text_refiners"),
    CAPTConfig: ("detach_targets",),
}


def _with(kind: type, name: str) -> Any:
    return lambda w, value: kind(**{name: value})


ROWS = [
    r
    for table, values, without in (
        (_COUNTS, COUNTS, ()),
        (_ZERO, COUNTS, ("zero",)),
        (_NUMBERS, NUMBERS, ()),
        (_CHOICES, CHOICES, ()),
        (_FLAGS, FLAGS, ()),
    )
    for kind, names in table.items()
    for name in names
    for r in each(kind.__name__, name, _with(kind, name), values, without=without)
]
for kind in (NAPConfig, AdvPTConfig):
    for name in ("eps", "alpha"):
        ROWS += each(kind.__name__, name, _with(kind, name), DISTANCES)
ROWS += each("NAPConfig", "eps_min", _with(NAPConfig, "eps_min"), DISTANCES)
ROWS += each("NAPConfig", "seed", _with(NAPConfig, "seed"), SEEDS)
ROWS += each("NAPConfig", "init_from", _with(NAPConfig, "init_from"), PATHS)
ROWS += each("AdvPTConfig", "bank_dir", _with(AdvPTConfig, "bank_dir"), PATHS)
ROWS += each("NAPConfig", "ctx_init", _with(NAPConfig, "ctx_init"), TEXTS)
ROWS += each("CAPTConfig", "guide_template", _with(CAPTConfig, "guide_template"), TEXTS)
_TEMPLATES = {**TEXTS, "empty": "", "no name": "[ctx].", "no context": "{}.", "open": "[ctx] {"}
_TEMPLATES |= {"two names": "[ctx] {} {}", "three contexts": "[ctx] [ctx] {} [ctx]", "field": "{x}"}
ROWS += each("NAPConfig", "template", _with(NAPConfig, "template"), _TEMPLATES)
ROWS += [
    row("NAPConfig-momentum-2", lambda w: NAPConfig(momentum=2), "momentum", "between 0 and 1"),
    row("NAPConfig-adv_share-2", lambda w: NAPConfig(adv_share=2), "adv_share", "between 0 and 1"),
    row(
        "NAPConfig-trades-without-clean-images",
        lambda w: NAPConfig(objective="trades", schedule="fixed", adv_share=1),
        "objective",
        "adv_share",
    ),
    row("AMPTConfig-trades", lambda w: AMPTConfig(objective="trades"), "objective", "clean_share"),
    row("CAPTConfig-trades", lambda w: CAPTConfig(objective="trades", ce="adv"), "objective", "ce"),
    row(
        "NAPConfig-kl-without-random-start",
        lambda w: NAPConfig(attack_loss="kl", random_start=False),
        "attack_loss",
        "random_start=True",
    ),
    row("NAPConfig-eps_min-large", lambda w: NAPConfig(eps=0.1, eps_min=0.2), "eps_min", "eps"),
    row("CAPTConfig-guide_template-bare", lambda w: CAPTConfig(guide_template="a cat"), "guide"),
    row("AMPTConfig-published", lambda w: AMPTConfig.published(), "AMPTConfig", "no published"),
    row("NAPConfig-published-typo", lambda w: NAPConfig.published(epoch=1), "epoch", "epochs"),
    row("NAPConfig-published-bad", lambda w: NAPConfig.published(epochs=0), "epochs", "at least 1"),
    row("AMPTConfig-n_prompts-65", lambda w: AMPTConfig(n_prompts=65), "n_prompts", "at most 64"),
    row(
        "replaced-lr-NaN",
        lambda w: dataclasses.replace(NAPConfig(), lr=NAN),
        "lr",
        "above 0",
        "nan",
    ),
]

# ---- settings files ----------------------------------------------------------------------------

_FILES = {
    "a list": ("[1, 2]", "mapping"),
    "a number": ("3", "mapping"),
    "broken": ("{epochs: ", "not valid"),
    "binary": (bytes(range(256)), "not valid"),
    "nested": ("epochs: " + "[" * 3_000, "nested"),
    "aliases": ("a: &a [1]\nepochs: *a", "aliases"),
    "billion laughs": ("a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]", "aliases"),
    "a tag": ("epochs: !!python/object/apply:os.system ['true']", "not valid"),
    "hexadecimal": ("epochs: 0x10", "plain decimal"),
    "an underscore": ("epochs: 1_0", "plain decimal"),
    "octal": ("epochs: 010", "plain decimal"),
    "base 60": ("epochs: 1:30", "plain decimal"),
    "hexadecimal in a list": ("epochs: [0x10]", "epochs"),
    "a fraction": ("epochs: 1.5", "epochs"),
    "a date": ("epochs: 2020-01-01", "epochs"),
    "yes": ("epochs: yes", "epochs"),
    "5000 digits": ("epochs: " + "9" * 5000, "digits"),
    "a typo": ("epoch: 3", "epochs"),
    "a number as a key": ("3: 3", "3"),
    "a list as a key": ("[a]: 3", "not valid"),
    "a mapping as a value": ("epochs: {a: 1}", "epochs"),
    "a NUL": ("epochs: \0", "not valid"),
    "a choice": ("optimizer: adam", "optimizer"),
    "JSON with a comment": ('{"epochs": 3 // three\n}', "epochs"),
}
ROWS += [
    row(
        f"settings-file-{kind}",
        lambda w, c=content: read_config(NAPConfig, w.file("settings.yaml", c)),
        "config",
        word,
    )
    for kind, (content, word) in _FILES.items()
]
ROWS += [
    row("settings-file-missing", lambda w: read_config(NAPConfig, w.folder / "a.yaml"), "config"),
    row("settings-file-folder", lambda w: read_config(NAPConfig, w.folder), "config"),
    *each("settings-file", "config", lambda w, v: read_config(NAPConfig, v), PATHS),
]

# ---- tuners ------------------------------------------------------------------------------------

_NAMES = ["cat", "dog", "fox"]
_CLASSNAMES: dict[str, Any] = {
    "a string": "cat",
    "None": None,
    "a number": 3,
    "empty": [],
    "a blank": ["cat", " "],
    "a number in it": ["cat", 3],
    "twice": ["cat", "cat"],
    "twice but for an underscore": ["red cat", "red_cat"],
    "a line break": ["cat\ndog"],
    "an escape": ["cat\x1b[31m"],
    "a surrogate": ["cat\ud800"],
    "too long": ["cat " * 100],
}


def _tuner(w: World, classnames: Any = _NAMES, config: Any = None, **settings: Any) -> APTTuner:
    return APTTuner(w.clip, classnames, config, **settings)


ROWS += each("APTTuner", "classnames", lambda w, v: _tuner(w, v), _CLASSNAMES)
_CONFIGS = {
    "a number": (3, "mapping"),
    "of another method": (NAPConfig(), "APTConfig"),
    "a missing file": ("no.yaml", "no.yaml"),
    "an unknown key": ({"epoch": 3}, "epochs"),
    "a number as a key": ({3: 3}, "3"),
    "a bad value": ({"epochs": "many"}, "epochs"),
    "a hexadecimal value": ({"epochs": "0x10"}, "epochs"),
}
ROWS += [
    row(f"APTTuner-config-{kind}", lambda w, c=config: _tuner(w, config=c), "config", word)
    for kind, (config, word) in _CONFIGS.items()
]
ROWS += [
    row("APTTuner-override-typo", lambda w: _tuner(w, epoch=1), "epoch", "epochs"),
    row(
        "APTTuner-dlr-two-classes",
        lambda w: _tuner(w, ["cat", "dog"], attack_loss="dlr"),
        "attack_loss",
        "at least 3 classes with 'dlr', got 2",
        "'margin'",
    ),
    row(
        "APTTuner-mixed-three-classes",
        lambda w: _tuner(w, attack_loss="mixed"),
        "attack_loss",
        "at least 4 classes with 'mixed', got 3",
    ),
    row("APTTuner-clip-none", lambda w: APTTuner(None, _NAMES), "model"),
    row("APTTuner-clip-unknown", lambda w: APTTuner("tiny-shape", _NAMES), "model", "tiny-shapes"),
    row("APTTuner-n_ctx-beyond-the-text", lambda w: _tuner(w, n_ctx=77), "n_ctx", "77"),
    row("APTTuner-n_ctx-9999", lambda w: _tuner(w, n_ctx=9999), "n_ctx"),
    row("APTTuner-ctx_init-blank", lambda w: _tuner(w, ctx_init="  "), "ctx_init"),
    row("APTTuner-ctx_init-long", lambda w: _tuner(w, ctx_init="cat " * 100), "n_ctx"),
    row("APTTuner-init_from-missing", lambda w: _tuner(w, init_from="no-run"), "no-run"),
    row("NAPTuner-depth-9", lambda w: NAPTuner(w.clip, _NAMES, depth=9), "depth", "1..2"),
    row(
        "APTTuner-reference-in-fp64",
        lambda w: _tuner(w, engine="reference", precision="fp64"),
        "precision",
        "fp32",
    ),
    row(
        "APTTuner-reference-compiled",
        lambda w: _tuner(w, engine="reference", compile=True),
        "compile",
    ),
    row(
        "APTTuner-reference-in-chunks",
        lambda w: _tuner(w, engine="reference", class_chunk=2),
        "class_chunk",
    ),
    row(
        "APTTuner-reference-in-shards",
        lambda w: _tuner(w, engine="reference", class_shards=2),
        "class_shards",
        "reference",
    ),
    row("APTTuner-shards-alone", lambda w: _tuner(w, class_shards=2), "class_shards", "torchrun"),
]


def _fit(w: World, train: Any = None, *arguments: Any, **options: Any) -> APTTuner:
    tuner = _tuner(w, n_ctx=1, epochs=1)
    return tuner.fit(w.data if train is None else train, *arguments, progress=False, **options)


ROWS += [
    row("fit-train-a-list", lambda w: _fit(w, [1]), "train"),
    row("fit-train-images", lambda w: _fit(w, w.images), "train"),
    row("fit-val-a-number", lambda w: _fit(w, None, 3), "val"),
    row("fit-resume-without-out", lambda w: _fit(w, resume=True), "out"),
    row("fit-tracker-without-out", lambda w: _fit(w, callbacks=["tensorboard"]), "out"),
    row("fit-tracker-unknown", lambda w: _fit(w, callbacks=["tensorbord"]), "track", "did you"),
    row("fit-callbacks-a-name", lambda w: _fit(w, callbacks="tensorboard"), "callbacks"),
    row("fit-callbacks-a-function", lambda w: _fit(w, callbacks=[print]), "callbacks", "Callback"),
    *each("save_pretrained", "folder", lambda w, v: _tuner(w, n_ctx=1).save_pretrained(v), PATHS),
    row("push_to_hub-no-org", lambda w: _tuner(w, n_ctx=1).push_to_hub("run"), "repo", "org/run"),
    row("push_to_hub-a-path", lambda w: _tuner(w, n_ctx=1).push_to_hub("../../run"), "repo"),
    row("push_to_hub-a-number", lambda w: _tuner(w, n_ctx=1).push_to_hub(3), "repo"),
    *each("from_pretrained", "name", lambda w, v: AutoTuner.from_pretrained(v), PATHS),
    row("fit-out-occupied", lambda w: _fit(w, None, None, w.file("a/b").parent), "out", "other"),
    row("fit-runner-of-apt", lambda w: _fit(w, runner="ray"), "runner", "torchrun"),
    row("fit-out-a-file", lambda w: _fit(w, None, None, w.file("a")), "out"),
    *each("fit", "out", lambda w, value: _fit(w, None, None, value), PATHS),
    *each("save", "folder", lambda w, value: _tuner(w, n_ctx=1).save(value), PATHS),
    row("save-occupied", lambda w: _tuner(w, n_ctx=1).save(w.file("a/b").parent), "folder"),
    row(
        "classifier_for-twice",
        lambda w: _tuner(w, n_ctx=1).classifier_for(["a", "a"]),
        "classnames",
    ),
    row(
        "classifier_for-class-specific",
        lambda w: _tuner(w, n_ctx=1, class_specific=True).classifier_for(["a", "b"]),
        "classnames",
    ),
    row(
        "classifier_for-precision",
        lambda w: _tuner(w, n_ctx=1).classifier_for(["a"], precision="fp8"),
        "precision",
    ),
]

# ---- run folders -------------------------------------------------------------------------------


def _load(w: World, change: Any = None, content: Any = None, **options: Any) -> APTTuner:
    config = json.loads((w.runs / "tuned" / "config.json").read_text())
    if change is not None:
        change(config)
    text = json.dumps(config) if content is None else content
    folder = w.file("run/config.json", text).parent
    w.file("run/prompts.safetensors", (w.runs / "tuned" / "prompts.safetensors").read_bytes())
    return APTTuner.load(folder, w.clip, **options)


def _set(*path: str, to: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = to

    return change


_CONTENTS = {"empty": "", "binary": bytes(range(256)), "truncated": '{"a": ', "a list": "[]"}
_CONTENTS |= {"nested": "[" * 100_000, "5000 digits": '{"format": ' + "9" * 5000 + "}"}
ROWS += [
    row(f"run-config-{kind}", lambda w, c=content: _load(w, content=c), "config.json")
    for kind, content in _CONTENTS.items()
]
_CHANGES = {
    "format-99": (_set("format", to=99), "format"),
    "method-number": (_set("method", to=3), "method"),
    "method-other": (_set("method", to="nap"), "nap"),
    "config-list": (_set("config", to=[]), "config"),
    "config-unknown-key": (_set("config", "zeal", to=3), "zeal"),
    "config-epochs-0": (_set("config", "epochs", to=0), "epochs"),
    "config-epochs-words": (_set("config", "epochs", to="x"), "epochs"),
    "config-template": (_set("config", "template", to="x"), "template"),
    "config-n_ctx": (_set("config", "n_ctx", to=3), "changed"),
    "classnames-text": (_set("classnames", to="abc"), "classnames"),
    "classnames-numbers": (_set("classnames", to=[1]), "classnames"),
    "classnames-twice": (_set("classnames", to=["a", "a"]), "classnames"),
    "clip-text": (_set("clip", to="tiny"), "clip"),
    "clip-empty": (_set("clip", to={}), "clip"),
    "clip-fingerprint-number": (_set("clip", "fingerprint", to=3), "clip"),
    "clip-fingerprint-other": (_set("clip", "fingerprint", to="00"), "clip"),
    "clip-name-number": (_set("clip", "name", to=3), "clip"),
    "clip-source-number": (_set("clip", "source", to=3), "clip"),
}
ROWS += [
    row(f"run-config-{kind}", lambda w, c=change: _load(w, c), word)
    for kind, (change, word) in _CHANGES.items()
]


def _load_source(w: World, source: Any) -> APTTuner:
    config = json.loads((w.runs / "tuned" / "config.json").read_text())
    config["clip"]["source"] = source
    return APTTuner.load(w.file("run/config.json", json.dumps(config)).parent)


_SOURCES = {
    "empty": {},
    "none": None,
    "a list": [1],
    "text": "tiny-shapes",
    "without a model": {"pretrained": None},
    "an unknown key": {"model": "tiny-shapes", "zeal": 1},
    "a number": {"model": 3},
    "a device": {"model": "tiny-shapes", "device": "meta"},
    "weights": {"model": "tiny-shapes", "image_weights": 3},
    "mean": {"model": "tiny-shapes", "mean": "x"},
}
ROWS += [
    row(f"run-source-{kind}", lambda w, s=source: _load_source(w, s), "clip")
    for kind, source in _SOURCES.items()
]


def _prompts(w: World, content: bytes) -> APTTuner:
    w.file("run/config.json", (w.runs / "tuned" / "config.json").read_bytes())
    w.file("run/prompts.safetensors", content)
    return APTTuner.load(w.folder / "run", w.clip)


_PROMPTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "a huge header": (2**62).to_bytes(8, "little") + b"{}",
    "declared sizes": (lambda h: len(h).to_bytes(8, "little") + h)(
        b'{"tokens":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    ),
    "JSON": b'{"tokens": [1]}',
    "a pickle": b"\x80\x04.",
}
ROWS += [
    row(f"run-prompts-{kind}", lambda w, c=content: _prompts(w, c), "prompts.safetensors")
    for kind, content in _PROMPTS.items()
]
ROWS += [
    row("load-missing", lambda w: APTTuner.load(w.folder / "no"), "no", "run folder"),
    row("load-a-file", lambda w: APTTuner.load(w.file("a")), "run folder"),
    row("load-which", lambda w: APTTuner.load(w.runs / "tuned", w.clip, which="x"), "which"),
    row("load-best", lambda w: APTTuner.load(w.runs / "tuned", w.clip, which="best"), "best"),
    row("load-clip-number", lambda w: APTTuner.load(w.runs / "tuned", 3), "model"),
    row("load-method", lambda w: NAPTuner.load(w.runs / "tuned", w.clip), "apt", "nap"),
    *each("load", "folder", lambda w, value: APTTuner.load(value), PATHS),
]
