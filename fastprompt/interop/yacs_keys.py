"""Keys of the public codes' yacs configurations, and what each stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from .._utils.checks import parse_fraction, shown
from ..data.coop import canonical
from ..data.coop_sets import PREFIX

_MODELS = {
    **dict.fromkeys(("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")),
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
_CROP, _FLIP, _NORMALIZE = "random_resized_crop", "random_flip", "normalize"
_SMALL = 0.2  # distances below are of pixels in [0, 1], those from 1 on in units of 1/255
_NO_EFFECT = "no effect on the result"


class Refused(Exception):
    """Why a value cannot be expressed, and the remedy."""


@dataclass(frozen=True)
class Found:
    """What a value stands for: settings and options by name, or a note of its effect."""

    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """How a key is read.

    Attributes:
        read: returns what a value stands for, or raises `Refused`.
        by: options that replace the key as a whole.
    """

    read: Callable[[Any], Found]
    by: tuple[str, ...] = ()


def _is(name: str, value: Any) -> Found:
    return Found({name: value})


def _noted(note: str, value: Any) -> Found:
    return Found(note=note)


def _whole(name: str, value: Any, *, least: int = 1) -> Found:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Refused(f"is not a whole number from {least}")
    return Found({name: value})


def only(accepted: Sequence[Any], remedy: str, note: str, value: Any) -> Found:
    """Accept some values, which need no setting."""
    if value not in accepted:
        raise Refused(f"cannot be expressed, only {' and '.join(map(str, accepted))}; {remedy}")
    return Found(note=note)


def _choice(name: str, choices: Mapping[Any, Any], remedy: str, value: Any) -> Found:
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise Refused(f"cannot be expressed, only {known}; {remedy}")
    return Found({name: choices[value]})


def distance(value: Any) -> str | float:
    """Return a distance as a setting; raise `Refused` unless its unit is clear."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused("is not a distance; write it as '4/255'")
    if value >= 1:
        return f"{value:g}/255"
    if 0 < value < _SMALL:
        return value
    raise Refused("may be a distance of pixels in [0, 1] or in units of 1/255; write it as '4/255'")


def _distance(names: Sequence[str], value: Any) -> Found:
    return Found(dict.fromkeys(names, distance(value)))


# ---- data and model ----------------------------------------------------------------------------


def _dataset(value: Any) -> Found:
    try:
        return Found({"data": f"{PREFIX}{canonical(str(value))}"})
    except ValueError as error:
        raise Refused(f"is no data set of CoOp ({error}); pass --data") from None


def _root(value: Any) -> Found:
    if not isinstance(value, str):
        raise Refused("is not a path; pass --root")
    if not value.strip():
        return Found(note="no folder; the default")
    return Found({"root": str(Path(value).expanduser())})


def _shots(value: Any) -> Found:
    found = _whole("shots", value, least=-1)
    return found if value >= 1 else Found({"shots": "all"})


def _seed(value: Any) -> Found:
    if value == -1:
        return Found(note="no fixed seed; the default")
    return Found(
        dict.fromkeys(("seed", "data_seed"), _whole("seed", value, least=0).settings["seed"])
    )


def _backbone(value: Any) -> Found:
    if not isinstance(value, str) or value not in _MODELS:
        raise Refused(f"is none of {', '.join(_MODELS)}; pass --clip and --pretrained")
    return Found({"clip": _MODELS[value] or value, "pretrained": "openai"})


def _robust(value: Any) -> Found:
    if value is not False:
        raise Refused("needs the weights of a robust image encoder; pass them as --image_weights")
    return Found(note="the model's own image encoder")


def _side(value: Any) -> Found:
    sides = [value] * 2 if isinstance(value, int) else value
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or sides[0] != sides[1]:
        raise Refused("is not the height and width of a square; pass --image_size")
    return _whole("image_size", sides[0])


def _interpolation(value: Any) -> Found:
    note = "random crops, and evaluation images if it is the model's"
    return only(("bicubic",), "remove it: open_clip's models use bicubic", note, value)


def _normalization(accepted: Sequence[Sequence[float]], value: Any) -> Found:
    numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
    for known in accepted:
        if (
            numbers
            and len(value) == 3
            and max(abs(a - b) for a, b in zip(value, known, strict=True)) < 1e-6
        ):
            return Found(note="the model normalizes its input")
    raise Refused(f"is not OpenAI's {list(accepted[0])}; remove it: the model's own is used")


def _transforms(method: str, value: Any) -> Found:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise Refused("is not a list of names")
    kinds = {str(name) for name in names} - {_NORMALIZE}
    if kinds not in (set(), {"center_crop"}, {_CROP, _FLIP}):
        raise Refused(f"cannot be expressed, only {_CROP} with {_FLIP}; pass --augment")
    if method == "advpt":  # the authors' bank too has images without augmentation
        return Found(note=f"{_NO_EFFECT}: the bank has the images without augmentation")
    if _CROP not in kinds:
        raise Refused(
            f"cannot be expressed: without {_CROP}, Dassl stretches the training images to SIZE x "
            "SIZE; pass --augment=false for those of the evaluation, which keep their proportions"
        )
    return Found({"augment": True, "crops": "exact"})


def _crop_scale(value: Any) -> Found:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or value[1] != 1:
        raise Refused("cannot be expressed, only (LOW, 1.0); pass --crop_min")
    return Found({"crop_min": value[0]})


# ---- optimizer ---------------------------------------------------------------------------------


def _warmup(value: Any) -> Found:
    return Found({"warmup_epochs": max(0, _whole("", value, least=-1).settings[""])})


_OPTIMIZER = {
    "OPTIM.NAME": Rule(
        partial(_choice, "optimizer", {"sgd": "sgd", "adamw": "adamw"}, "pass --optimizer"),
        ("optimizer",),
    ),
    "OPTIM.LR": Rule(partial(_is, "lr")),
    "OPTIM.MAX_EPOCH": Rule(partial(_whole, "epochs")),
    "OPTIM.WEIGHT_DECAY": Rule(partial(_is, "weight_decay")),
    "OPTIM.MOMENTUM": Rule(partial(_is, "momentum")),
    "OPTIM.LR_SCHEDULER": Rule(
        partial(only, ("cosine",), "remove it to use a cosine", "the schedule")
    ),
    "OPTIM.WARMUP_EPOCH": Rule(_warmup),
    "OPTIM.WARMUP_TYPE": Rule(
        partial(only, ("constant",), "remove it to use a constant rate", "the warm-up")
    ),
    "OPTIM.WARMUP_CONS_LR": Rule(partial(_is, "warmup_lr")),
    "OPTIM.WARMUP_RECOUNT": Rule(partial(only, (True,), "remove it", "the schedule")),
}

_MODEL = ("clip", "image_size")
_DATA = {
    "DATASET.NAME": Rule(_dataset, ("data",)),
    "DATASET.ROOT": Rule(_root, ("root",)),
    "DATASET.NUM_SHOTS": Rule(_shots, ("shots",)),
    "DATASET.SUBSAMPLE_CLASSES": Rule(
        partial(
            _choice,
            "classes",
            {name: name for name in ("all", "base", "new")},
            "pass --classes",
        ),
        ("classes",),
    ),
    "SEED": Rule(_seed),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Rule(partial(_whole, "batch")),
    "DATALOADER.TRAIN_X.SAMPLER": Rule(
        partial(only, ("RandomSampler",), "remove it", "the order is random")
    ),
    "DATALOADER.TEST.BATCH_SIZE": Rule(partial(_whole, "eval_batch")),
    "DATALOADER.NUM_WORKERS": Rule(partial(_whole, "workers", least=0)),
    "INPUT.SIZE": Rule(_side, _MODEL),
    "INPUT.INTERPOLATION": Rule(_interpolation),
    "INPUT.RRCROP_SCALE": Rule(_crop_scale, ("crop_min",)),
    "MODEL.BACKBONE.NAME": Rule(_backbone, ("clip",)),
    "TEST.FINAL_MODEL": Rule(
        partial(_choice, "keep", {"last_step": "last", "best_val": "best"}, "pass --keep")
    ),
}
_SAID = {
    **dict.fromkeys(
        ("TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "VERBOSE", "USE_CUDA", "VERSION"), _NO_EFFECT
    ),
    "OUTPUT_DIR": "not used; --out names the run folder",
}

# ---- attacks -----------------------------------------------------------------------------------


def _pgd(key: str, alpha: Any, value: Any) -> Found:
    """Translate the number of steps of the test attack; `alpha` is the value of ``key`` or None."""
    name = f"clean,pgd-{_whole('steps', value).settings['steps']}"
    if alpha is None:
        return Found({"attacks": name}, "steps of eps/4, any iterate counts")
    try:
        size = f"{255 * parse_fraction(distance(alpha), 'alpha'):.12g}/255"
    except (Refused, ValueError):
        raise Refused(f"has steps of {key} = {shown(alpha)}, which is no distance") from None
    return Found({"attacks": f"{name}:{size}"}, "any iterate counts")


def _adv_term(value: Any) -> Found:
    raise Refused("is a factor of FAP's loss, which CAPT's loss does not have; remove it")


_AT = {
    "AT.EPS": Rule(partial(_distance, ("eps",)), ("eps",)),
    "AT.ALPHA": Rule(partial(_distance, ("alpha",)), ("alpha",)),
    "AT.STEPS": Rule(partial(_whole, "steps")),
    "AT.PROMPT": Rule(
        partial(
            only,
            ("onfly",),
            "remove it: the attack goes through the current prompts",
            "the attack goes through the current prompts",
        )
    ),
    "AT.PALPHA": Rule(
        partial(_noted, f"{_NO_EFFECT}: only attacks that change the prompts use it")
    ),
    "MODEL.BACKBONE.ROBUST": Rule(_robust, ("image_weights", "clip")),
}
_ATTACKS: dict[str, dict[str, Rule]] = {
    "apt": _AT,
    "ampt": _AT,
    "advpt": {
        "DATASET.TRAIN_EPS": Rule(partial(_distance, ("eps",)), ("eps",)),
        "DATASET.TEST_EPS": Rule(partial(_distance, ("eval_eps",)), ("eval_eps",)),
        "DATALOADER.TRAIN_X.BATCH_EMBEDDING_SIZE": Rule(partial(_whole, "attack_batch")),
    },
    "coop": {},
    "capt": {
        "ATTACK.PGD.EPS": Rule(partial(_distance, ("eps", "eval_eps"))),
        "ATTACK.PGD.ALPHA": Rule(partial(_distance, ("alpha",)), ("alpha",)),
        "ATTACK.PGD.TRAIN_ITER": Rule(partial(_whole, "steps")),
        "ATTACK.PGD.ADV_TERM": Rule(_adv_term),
        "ATTACK.PGD.LAMBDA_1": Rule(partial(_is, "lam")),
    },
    "nap": {
        "TRAINER.MAPLE.EPSILON": Rule(partial(_distance, ("eps",)), ("eps",)),
        "TRAINER.MAPLE.ADV_STEPS": Rule(partial(_whole, "steps")),
        "TRAINER.MAPLE.TEST_EPSILON": Rule(partial(_distance, ("eval_eps",)), ("eval_eps",)),
        "TRAINER.MAPLE.ADV_TRAIN": Rule(
            partial(only, (True,), "clean tuning is not a setting of nap", "adversarial tuning")
        ),
    },
}
_TRAINERS = {
    "advpt": ("AdvPT", "ADV", "CoOp"),
    "apt": ("APT",),
    "ampt": ("CoOp", "APT"),
    "coop": ("CoOp",),
    "capt": ("FAP", "MaPLe"),
    "nap": ("MaPLe",),
}


# the number of steps of the test attack, and their size if the code has one
_TESTS = {
    "capt": ("ATTACK.PGD.TEST_ITER", "ATTACK.PGD.ALPHA"),
    "nap": ("TRAINER.MAPLE.TEST_STEPS", ""),
}


def rules_of(method: str, values: Mapping[str, Any]) -> dict[str, Rule]:
    """Return the rules of a method's keys, without those of its prompts.

    Args:
        values: the values of the files, since some keys depend on each other.
    """
    accepted = (OPENAI_DATASET_MEAN, (0, 0, 0)), (OPENAI_DATASET_STD, (1, 1, 1))
    pixels = {
        f"INPUT.PIXEL_{kind}": Rule(partial(_normalization, known), ("clip",))
        for kind, known in zip(("MEAN", "STD"), accepted, strict=True)
    }
    said = {key: Rule(partial(_noted, note)) for key, note in _SAID.items()}
    tests = {}
    if method in _TESTS:
        steps, alpha = _TESTS[method]
        tests[steps] = Rule(partial(_pgd, alpha, values.get(alpha)), ("attacks",))
    trainer = partial(
        only, _TRAINERS[method], "choose the method on the command line", "the method"
    )
    return {
        **_DATA,
        **pixels,
        "INPUT.TRANSFORMS": Rule(partial(_transforms, method), ("augment",)),
        **_OPTIMIZER,
        **said,
        "TRAINER.NAME": Rule(trainer),
        **_ATTACKS[method],
        **tests,
    }
