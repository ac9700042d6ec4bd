"""The public functions of `fastprompt.kernels`."""

from collections.abc import Callable
from typing import Any

import torch

from fastprompt.kernels import (
    apgd_step,
    consistency_loss,
    layer_consistency,
    mixture_gram,
    mixture_logits,
    pgd_step,
    pgd_step_,
    prefix_attention,
    random_start,
)

from .rows import CHOICES, NUMBERS, each, row

_X = torch.full((2, 3, 4, 4), 0.5)
_Q = torch.zeros(1, 3, 2, 4)
_FUNCTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    pgd_step: {"x_adv": _X, "x": _X, "grad": _X, "alpha": 0.1, "eps": 0.1},
    pgd_step_: {"x_adv": _X, "x": _X, "grad": _X, "alpha": 0.1, "eps": 0.1},
    apgd_step: {"x_adv": _X, "x_prev": _X, "x": _X, "grad": _X, "alpha": 0.1, "eps": 0.1},
    random_start: {
        "x": _X,
        "indices": torch.arange(2),
        "key": torch.zeros(2, dtype=torch.int64),
        "eps": 0.1,
        "sides": "two-sided",
    },
    consistency_loss: {
        "adv_logits": torch.zeros(2, 3),
        "clean_logits": torch.zeros(2, 3),
        "frozen_logits": torch.zeros(2, 3),
        "labels": torch.zeros(2, dtype=torch.int64),
        "alpha": 0.5,
    },
    layer_consistency: {"a": [torch.zeros(2, 3)], "b": [torch.zeros(2, 3)]},
    mixture_gram: {"text_features": torch.zeros(2, 3, 4)},
    mixture_logits: {
        "image_features": torch.zeros(2, 4),
        "text_features": torch.ones(2, 3, 4),
        "router_logits": torch.zeros(2, 2),
        "logit_scale": 1.0,
    },
    prefix_attention: {
        **{"q": _Q, "k": _Q, "v": _Q, "prefix_k": _Q, "prefix_v": _Q},
        "cu_seqlens": torch.tensor([0, 3], dtype=torch.int32),
    },
}


def _call(function: Callable[..., Any], given: dict[str, Any], name: str) -> Any:
    return lambda w, value: function(**{**given, name: value})


ROWS = []
for function, given in _FUNCTIONS.items():
    what = function.__name__
    for name, value in given.items():
        call = _call(function, given, name)
        if isinstance(value, torch.Tensor):
            bad: dict[str, Any] = {
                "none": None,
                "a list": [1.0],
                "bools": torch.zeros(value.shape, dtype=torch.bool),
                "one dimension more": value[None],
                "on meta": value.to("meta"),
            }
            # the first tensor of a function sets the number of dimensions of the others
            first = name in ("x_adv", "x", "image_features")
            skip = ["one dimension more"] if first else []
            skip += ["on meta"] if len(given) == 1 else []  # of the anchor: it is supported
            ROWS += each(what, name, call, bad, without=skip)
    ROWS += each(what, "impl", _call(function, given, "impl"), CHOICES)
for function, names in {
    pgd_step: ("alpha", "eps", "lo", "hi"),
    pgd_step_: ("alpha", "eps"),
    apgd_step: ("alpha", "eps", "momentum"),
    random_start: ("eps", "lo", "hi"),
    consistency_loss: ("alpha", "lam"),
    mixture_logits: ("logit_scale", "temperature"),
    prefix_attention: ("scale",),
}.items():
    for name in names:
        signed = name in ("lo", "hi", "logit_scale", "scale")
        skip = ["1e308", "a tensor", *(["negative"] if signed else [])]
        skip += ["infinite"] if name in ("lo", "hi", "eps") else []
        skip += ["None"] if name == "scale" else []
        ROWS += each(
            function.__name__,
            name,
            _call(function, _FUNCTIONS[function], name),
            NUMBERS,
            without=skip,
        )
for function, name in (
    (random_start, "sides"),
    (consistency_loss, "ce"),
    (consistency_loss, "train_kl"),
    (consistency_loss, "frozen_kl"),
    (mixture_logits, "mix"),
    (mixture_gram, "mix"),
):
    ROWS += each(function.__name__, name, _call(function, _FUNCTIONS[function], name), CHOICES)
ROWS += [
    row("pgd_step-lo-above-hi", lambda w: pgd_step(_X, _X, _X, alpha=1, eps=1, lo=2), "lo", "hi"),
    row(
        "pgd_step-counts",
        lambda w: pgd_step(_X, _X, _X, alpha=1, eps=1, counts=torch.zeros(2, 2)),
        "counts",
    ),
    row(
        "pgd_step_-with-gradient",
        lambda w: pgd_step_(_X.clone().requires_grad_(), _X, _X, alpha=1, eps=1),
        "x_adv",
    ),
    row("layer_consistency-lengths", lambda w: layer_consistency([_X], [_X, _X]), "b", "layers"),
    row("layer_consistency-none", lambda w: layer_consistency([], []), "a", "layer"),
    row("layer_consistency-mixed", lambda w: layer_consistency([_X], _X), "a and b"),
    row(
        "consistency_loss-labels-outside",
        lambda w: consistency_loss(
            **{**_FUNCTIONS[consistency_loss], "labels": torch.tensor([0, 9])}
        ),
        "labels",
    ),
]
