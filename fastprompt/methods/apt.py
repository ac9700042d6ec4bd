"""APT: tunes a text context on adversarial images for the current context.

Li et al., "One prompt word is enough to boost adversarial robustness for pre-trained
vision-language models", CVPR 2024 (arXiv 2403.01849). Each step attacks the current context by PGD
and minimizes the cross-entropy on the adversarial images. APT is the baseline of the other methods.
"""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from ..prompts.context import TextContext
from ..tuning.online import OnlineConfig, OnlineTuner
from ..tuning.step import Step
from . import presets, published


@dataclasses.dataclass(frozen=True)
class APTConfig(OnlineConfig):
    """Settings of APT. The defaults are CoOp's context and optimizer, and 3 steps of 2/3 eps.

    Attributes:
        class_specific: tune a separate context for each class, instead of one for all classes.
    """

    class_specific: bool = False

    _published = published.APT


class APTTuner(OnlineTuner):
    """APT (Adversarial Prompt Tuning): tunes a text context on adversarial images.

    Supports every CLIP model whose text encoder accepts prompts. See `Tuner` for the arguments.
    """

    method = "apt"
    paper = "https://arxiv.org/abs/2403.01849"
    Config = APTConfig
    presets = presets.APT
    config: APTConfig
    prompts: TextContext

    def build_prompts(self) -> TextContext:
        config = self.config
        classes = len(self.classnames) if config.class_specific else None
        return TextContext(
            self.n_ctx,
            self.text_width(),
            classes=classes,
            seed=config.seed,
            start=self.context_start(),
        )

    def loss(self, batch: Step) -> Tensor:
        """Return the cross-entropy on the adversarial images.

        With ``objective="trades"``, ``CE(clean) + beta KL(p_clean || p_adv)``.
        """
        if self.config.objective == "ce":
            return self.adversarial_loss(batch.attacked(), None, batch.labels)
        clean, adv = batch.both()
        loss = F.cross_entropy(clean.logits, batch.labels)
        return loss + self.adversarial_loss(adv, clean, batch.labels)
