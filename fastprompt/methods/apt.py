"""APT: a text context tuned on fresh adversarial images of itself.

Li et al., "One prompt word is enough to boost adversarial robustness for pre-trained
vision-language models", CVPR 2024. In each step PGD attacks the prompts as they are; their
cross-entropy on what it finds is lowered. The yardstick for the other methods.
"""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from ..prompts.context import TextContext
from ..tuning.online import OnlineConfig, OnlineTuner
from ..tuning.step import Step
from . import presets


@dataclasses.dataclass(frozen=True)
class APTConfig(OnlineConfig):
    """APT's settings; by default CoOp's context and optimizer, and three steps of 2/3 eps.

    Attributes:
        class_specific: each class has a context of its own.
    """

    class_specific: bool = False


class APTTuner(OnlineTuner):
    """APT on any CLIP that takes text prompts. See `Tuner` for the arguments."""

    method = "apt"
    Config = APTConfig
    presets = presets.APT
    config: APTConfig
    prompts: TextContext

    def build_prompts(self) -> TextContext:
        config = self.config
        classes = len(self.classnames) if config.class_specific else None
        start = self.context_start(config.ctx_init, config.n_ctx)
        return TextContext(
            config.n_ctx, self.text_width(), classes=classes, seed=config.seed, start=start
        )

    def loss(self, batch: Step) -> Tensor:
        """Cross-entropy of the adversarial images."""
        return F.cross_entropy(batch.attacked().logits, batch.labels)
