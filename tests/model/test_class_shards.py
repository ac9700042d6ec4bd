"""What --class-shards saves in the text encoder: FLOPs and kept activations are counted."""

from typing import Any

import pytest
import torch
from helpers.models import small_model
from torch.utils.flop_counter import FlopCounterMode

from fastprompt import load_clip
from fastprompt._utils import distributed
from fastprompt.methods.registry import TUNERS
from fastprompt.model import class_shards

NAMES = [f"{kind} {thing}" for kind in ("old", "new", "red", "big") for thing in range(50)]
SETTINGS: dict[str, dict[str, Any]] = {
    "advpt": {},
    "apt": {},
    "apt-class-specific": {"class_specific": True},
    "ampt": {"n_prompts": 3},
    "capt": {},
    "nap": {},
}


def spent(patch: pytest.MonkeyPatch, case: str, count: int, rank: int) -> tuple[int, int]:
    """FLOPs of the class features, forward and backward, and bytes kept for the latter."""
    for module in (distributed, class_shards):
        patch.setattr(module, "processes", lambda: count)
    patch.setattr(distributed, "rank", lambda: rank)
    patch.setattr(class_shards, "gather_rows", lambda own, rows: own)
    method = case.split("-")[0]
    settings = {"compile": False, "precision": "fp32", **SETTINGS[case]}
    # at the width of 24 of the small model, a CPU encodes few classes without a shared prefix
    tuner = TUNERS[method](load_clip(small_model(width=128)), NAMES, class_shards=count, **settings)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tensors = [*tuner.clip.model.parameters(), *tuner.model.text.buffers()]
    weights = {t.untyped_storage().data_ptr() for t in tensors}
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = tuner.model.class_features()
        features.sum().backward()
    assert features.shape[-2] == len(range(rank, len(NAMES), count))
    return counter.get_total_flops(), sum(kept.values())


@pytest.mark.parametrize("case", SETTINGS)
def test_a_fourth_of_the_classes_takes_about_a_fourth(case, monkeypatch):
    whole = spent(monkeypatch, case, 1, 0)
    for rank in (0, 3):
        for own, every in zip(spent(monkeypatch, case, 4, rank), whole, strict=True):
            assert 0.235 <= own / every <= 0.285  # 24 to 28 % in docs/guides/many_devices.md
