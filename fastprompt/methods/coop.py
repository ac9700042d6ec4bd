"""CoOp: tunes a text context on clean images.

Zhou et al., "Learning to prompt for vision-language models", IJCV 2022 (arXiv 2109.01134). The
prompts are those of APT, the loss is the cross-entropy on the clean images. It shows what clean
tuning alone does for robustness.
"""

import dataclasses
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.distributed import add_up_, own_part
from ..tuning.step import Step
from . import presets, published
from .apt import APTConfig, APTTuner


@dataclasses.dataclass(frozen=True)
class CoOpConfig(APTConfig):
    """Settings of CoOp: those of APT, of which the attack's have no effect."""

    _published = published.COOP

    @classmethod
    def published_at(cls, shots: int | Literal["all"]) -> dict[str, Any]:
        epochs = [
            n for most, n in published.COOP_EPOCHS.items() if shots != "all" and shots <= most
        ]
        return {"epochs": epochs[0]} if epochs else {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective != "ce":
            raise ValueError(
                f"objective must be 'ce' for CoOp, which attacks no images, got "
                f"{self.objective!r}: use APT"
            )


class CoOpTuner(APTTuner):
    """CoOp (Context Optimization): tunes a text context on clean images, without an attack.

    Supports every CLIP model whose text encoder accepts prompts. See `Tuner` for the arguments.
    Prompts are selected by the clean accuracy on the validation images.
    """

    method = "coop"
    attacks_images = False
    paper = "https://arxiv.org/abs/2109.01134"
    Config = CoOpConfig
    presets = presets.COOP
    score = "val_accuracy"
    config: CoOpConfig

    def loss(self, batch: Step) -> Tensor:
        """Return the cross-entropy on the clean images."""
        return F.cross_entropy(batch.clean().logits, batch.labels)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the clean accuracy on the validation images."""
        pictures = self._pictures.get("val")
        if pictures is None:
            return {}
        prepared = self.model.prepare() if self.model.engine == "fast" else None
        right = torch.zeros((), dtype=torch.int64, device=self.clip.device)
        order = own_part(torch.arange(len(pictures)))
        for _, images, labels in pictures.batches(order, self.own_batch):
            right += (self.model.see(images, prepared).logits.argmax(1) == labels).sum()
        add_up_(right)
        return {"val_accuracy": int(right) / len(pictures)}
