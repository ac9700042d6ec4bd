"""Settings of the authors' public code, which `published` of a method's config returns.

AdvPT and APT use fp16, which needs a GPU; their ``precision`` is therefore not set here. The number
of context tokens is the default one.
"""

from collections.abc import Mapping
from typing import Any

# SGD with momentum 0.9 and weight decay 5e-4, and the schedule, are those of CoOp and Dassl
_COOP: dict[str, Any] = {
    "batch": 32,
    "lr": 0.002,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "keep": "last",
    "ctx_init": None,
}

# KaiyangZhou/CoOp at 6979355, vit_b16.yaml, for 8 and 16 shots; for fewer see `COOP_EPOCHS`
COOP: Mapping[str, Any] = {
    **_COOP,
    "epochs": 200,
    "drop_last": True,
    "class_specific": False,
    "augment": True,
    "crop_min": 0.08,
    "crops": "exact",
}

# epochs by the largest number of shots, from the commands of CoOp's README
COOP_EPOCHS: Mapping[int, int] = {1: 50, 4: 100}

# jiamingzhang94/Adversarial-Prompt-Tuning at a6ada7e
ADVPT: Mapping[str, Any] = {
    **_COOP,
    "epochs": 100,
    "eps": 8 / 255,
    "steps": 10,
    "alpha": None,  # 1.25 eps / steps
    "start": "one-sided",
    "clamp": "steps",
}

# TreeLLi/APT, the command of its README: vit_b32_ep50 end 16 16 False 4 2.67 3 0 onfly 0
APT: Mapping[str, Any] = {
    **_COOP,
    "epochs": 50,
    "drop_last": True,
    "class_specific": False,
    "eps": 4 / 255,
    "alpha": 2.67 / 255,
    "steps": 3,
    "random_start": True,
    "clamp": "inputs",
    "augment": True,
    "crop_min": 0.08,
    "crops": "exact",
}

# jiamingzhang94/MAPT at d26abda and 2b620a8
NAP: Mapping[str, Any] = {
    "epochs": 20,
    "batch": 32,
    "drop_last": True,
    "lr": 1e-4,
    "warmup_epochs": 1,
    "warmup_lr": 1e-6,
    "optimizer": "adamw",
    "weight_decay": 5e-4,  # Dassl's default
    "keep": "last",
    "precision": "fp32",
    "ctx_init": None,
    "depth": None,  # all layers
    "refiners": True,
    "text_refiners": False,
    "refiner_start": "linear",
    "map_start": "copies",
    "eps": 4 / 255,
    "steps": 5,
    "alpha": None,  # 0.3 eps
    "random_start": False,
    "clamp": "end",
    "augment": True,
    "crop_min": 0.08,
    "crops": "exact",
    "schedule": "linear",
    "consistency": "cosine",
}
