"""Run folders with made-up numbers: nothing is tuned or attacked."""

import json
import random
from pathlib import Path

import pytest
import torch

from fastprompt._utils.files import write_tensors
from fastprompt.evaluation import Evaluation
from fastprompt.evaluation.scoring import wilson

N, CLASSES = 120, 24
NAMES = ["<b>bold</b> cat", "R&D 100 %", "snake_case", *(f"class no {i}" for i in range(3, 24))]
LABELS = [i % CLASSES for i in range(N)]
RADII = (1 / 255, 2 / 255, 4 / 255)


def flags_of(share, seed, among="1" * N, *, alike=True):
    """Flags of which about ``share`` stand, none that ``among`` has not.

    Unless the classes are alike, the first half of them stands more often.
    """
    draw = random.Random(seed)
    shares = [share if alike else share**0.1 if y < CLASSES // 2 else share**6 for y in LABELS]
    pairs = zip(among, (shares * len(among))[: len(among)], strict=True)
    return "".join("1" if a == "1" and draw.random() < own else "0" for a, own in pairs)


def row(model, attack, path, eps, flags, **more):
    correct, n = flags.count("1"), len(flags)
    plain = {"trusted": True, "reasons": [], "settings": {}, "stalled": flags.count("?")}
    return {
        **{"model": model, "attack": attack, "path": path, "eps": eps, "flags": flags},
        **{"accuracy": correct / n, "n": n, "correct": correct, "interval": wilson(correct, n)},
        **{"zero_gradients": 0.0, "nonfinite_gradients": 0.0},
        **{"forwards": 9 * n, "gradients": 8 * n, "seconds": 1.25, **plain, **more},
    }


def fell_at(clean, flags):
    """The images that left, over a few iterates."""
    gone = clean.count("1") - flags.count("1")
    late = gone // 3
    return {"0": gone - 2 * late, "2": late, "7": late}


def rows_of(model, strength, seed):
    """Clean, then PGD, AutoAttack and a transfer attack at each radius."""
    clean = flags_of(0.85, seed)
    guesses = [y if f == "1" else (y + 1) % CLASSES for y, f in zip(LABELS, clean, strict=True)]
    out = [row(model, "clean", "none", 0.0, clean, predictions=guesses, gradients=0)]
    for place, eps in enumerate(RADII):
        share = strength ** (place + 1)
        pgd = flags_of(share, seed + place + 1, clean, alike=model == "zero-shot")
        auto = flags_of(0.8, seed + place + 9, pgd)
        other = flags_of(share**0.5, seed + place + 20, clean)
        steps = {"steps": 20, "alpha": eps / 4, "loss": "cross-entropy", "counts": "any iterate"}
        parts = [
            {"attack": "apgd-ce", "standing": pgd.count("1"), "seconds": 1.0},
            {"attack": "apgd-t", "standing": auto.count("1"), "seconds": 2.0},
        ]
        both = {"parts": [{"attack": p["attack"], "steps": 100} for p in parts]}
        out += [
            row(model, "pgd-20", "adaptive", eps, pgd, settings=steps, fell_at=fell_at(clean, pgd)),
            row(model, "autoattack", "adaptive", eps, auto, parts=parts, settings=both),
            row(model, "pgd-20@frozen", "transfer:frozen", eps, other, settings=steps),
        ]
    return out


CHECKS = ("repeatable", "batch split", "radius zero", "gradient health", "planted")


def sanity_of(model, **failed):
    """Verdicts, passed but for those that are named with a reason."""
    words = {name.replace("_", " "): why for name, why in failed.items()}
    return [
        {
            "model": model,
            "check": check,
            "verdict": "failed" if check in words else "passed",
            "reason": words.get(check, ""),
            "figures": {},
        }
        for check in CHECKS
    ]


def evaluation(rows, sanity=(), **more):
    """An evaluation of those rows."""
    models = dict.fromkeys(r["model"] for r in rows)
    about = {
        "models": {
            m: {"kind": "CLIPClassifier", "engine": "fast", "precision": "fp32", "weights": f"{m}1"}
            for m in models
        },
        "data": {
            **{"name": "shapes_&_co", "fingerprint": "f00", "n": N, "of": 1000},
            **{"indices": list(range(10, 10 + N)), "labels": LABELS, "classnames": NAMES},
        },
        "how": {"seed": 0, "batch": 128, "stop": True, "samples": 1, "sanity": "full"},
        "versions": {"python": "3.11.9", "torch": "2.12.0"},
    }
    return Evaluation(rows=rows, sanity=list(sanity), **{**about, **more})


def diagnostics():
    """Of a model that has a router and refiners."""
    draw = random.Random(5)

    def weights():
        raw = [[draw.random() ** 3 for _ in range(4)] for _ in NAMES]
        return [[w / sum(line) for w in line] for line in raw]

    return {
        **{"attack": "pgd-20", "eps": 4 / 255, "images": 128},
        "routing": {"classes": NAMES, "clean": weights(), "adversarial": weights()},
        "refiners": {
            "layers": list(range(1, 13)),
            "clean": [0.01 * i for i in range(1, 13)],
            "adversarial": [0.015 * i for i in range(1, 13)],
        },
    }


def examples(folder, number, size=48, many=6):
    """Kept images of row ``number``, with an attack that moves each pixel by the radius."""
    draw = torch.Generator().manual_seed(3)
    line = torch.linspace(0, 255, size)
    gray = (line[None, :] + line[:, None]) / 2
    tint = torch.rand(many, 3, 1, 1, generator=draw)
    clean = (gray * (0.3 + 0.7 * tint)).round().to(torch.uint8)
    sign = torch.randint(0, 2, clean.shape, generator=draw) * 2 - 1
    adv = (clean / 255 + sign * RADII[1]).clamp(0, 1).float()
    tensors = {
        "indices": torch.arange(10, 10 + many),
        "labels": torch.tensor(LABELS[:many]),
        "clean": clean,
        f"adv.{number}": adv,
        f"prediction.{number}": torch.tensor([*LABELS[: many - 2], 7, -1]),
    }
    write_tensors(folder / "examples.safetensors", tensors, {"kind": "examples"})


def add_tuning(folder, method, epochs=20, **recorded):
    """``config.json`` and ``metrics.jsonl``."""
    config = {"method": method, "config": {"epochs": epochs, "lr": 0.002, "eps": 4 / 255}}
    config |= {"clip": {"name": "tiny-shapes"}, "classnames": NAMES}
    write_config(folder, config, **recorded)
    lines = [
        {
            **{"epoch": e + 1, "loss": 2.5 * 0.9**e + 0.4, "lr": 0.002},
            **{"val_accuracy": 0.8 - 0.3 * 0.85**e, "val_robust": 0.5 - 0.4 * 0.9**e},
        }
        for e in range(epochs)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def write_config(folder, config, seed=None, job=True, **settings):
    """``config.json``, with the seed of a run of ``tune`` if one is given."""
    if seed is not None:
        settings["seed"] = seed
        facts = {"data": "shapes", "shots": 4, "classes": "all", "data_seed": seed}
        config = {**config, **({"job": facts} if job else {})}
    config = {**config, "config": {**config["config"], **settings}}
    (folder / "config.json").write_text(json.dumps(config))


def seed_run(folder, seed, *, method="nap", flags="", how=0, job=True, **settings):
    """A small run of one seed: zero-shot and tuned, clean and under an attack."""
    folder.mkdir(parents=True)
    flags = flags or flags_of(0.5, 100 + (seed or 0))
    rows = [row("zero-shot", "clean", "none", 0.0, "1" * 90 + "0" * 30)]
    rows += [row("tuned", "clean", "none", 0.0, "1" * 100 + "0" * 20)]
    rows += [row("tuned", "pgd-20", "adaptive", RADII[0], flags, settings={"seed": how})]
    found = evaluation(rows, [*sanity_of("zero-shot"), *sanity_of("tuned")])
    found.models["tuned"]["weights"] = f"{method} {folder}"
    found.how["seed"] = how
    found.save(folder / "result.json")
    config = {"method": method, "config": {}, "clip": {"fingerprint": "c"}, "classnames": NAMES}
    write_config(folder, config, seed, job, **settings)
    return folder


def full_run(folder, method="nap", seed=0, *, sound=True, recorded=False):
    """A run folder that has everything; its seed is in ``config.json`` if it is to be recorded."""
    folder.mkdir(parents=True)
    rows = [*rows_of("zero-shot", 0.45, 0), *rows_of("tuned", 0.78, 100 + seed)]
    failed = {} if sound else {"gradient_health": "9 % of the entries of the gradient are zero"}
    sanity = [*sanity_of("zero-shot"), *sanity_of("tuned", **failed)]
    if not sound:
        rows[-1] |= {"trusted": False, "reasons": ["no usable gradient for 7 images"]}
    number = next(
        i
        for i, r in enumerate(rows)
        if r["model"] == "tuned" and r["attack"] == "autoattack" and r["eps"] == RADII[1]
    )
    found = evaluation(rows, sanity, diagnostics={"tuned": diagnostics()})
    found.models["tuned"] |= {"weights": f"{method}{seed}", "defenses": ["JPEG(75)"]}
    found.save(folder / "result.json")
    examples(folder, number)
    add_tuning(folder, method, **({"seed": seed} if recorded else {}))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder that has everything."""
    return full_run(tmp_path / "nap-run")


@pytest.fixture
def bare(tmp_path) -> Path:
    """A folder with one small result and nothing beside it."""
    folder = tmp_path / "bare"
    folder.mkdir()
    rows = [row("m", "clean", "none", 0.0, "1101"), row("m", "pgd-5", "adaptive", 4 / 255, "1001")]
    found = evaluation(rows, data={"n": 4}, models={}, how={})
    found.save(folder / "result.json")
    return folder
