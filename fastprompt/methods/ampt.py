"""AMPT: tunes a mixture of text prompts, which a router weights for each image.

Adversarial Mixture Prompt Tuning (arXiv 2505.17509; later MoAPT) uses several short prompts instead
of a longer one. The attack's gradient passes through the router. The parts of the paper that we
could read leave open the router's architecture, whether the loss uses adversarial images only, and
the optional loss terms; these are our choices.
"""

import dataclasses
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import MOST_WEIGHT, MOST_WIDTH, check_choice, check_count, check_number
from ..kernels.mixture_logits import MAX_PROMPTS, Mix
from ..prompts.mixture import PromptMixture
from ..tuning.online import OnlineConfig, OnlineTuner
from ..tuning.step import Step
from . import presets


@dataclasses.dataclass(frozen=True)
class AMPTConfig(OnlineConfig):
    """Settings of AMPT.

    Attributes:
        n_prompts: number K of prompts in the mixture, at most 64.
        temperature: temperature T of the router's softmax.
        mix: mix L2-normalized text features (``"normalized"``), or the text encoder's outputs
            (``"raw"``).
        router_width: hidden width of the router; by default a quarter of the feature dimension.
        clean_share: weight of the cross-entropy on the clean images, in [0, 1]; the cross-entropy
            on the adversarial images has the weight ``1 - clean_share``. With
            ``objective="trades"`` it must be above 0; 1/2 gives both terms the ratio of TRADES.
        load_balance: weight of the load-balancing loss ``K sum_k mean_b(w_bk)^2 - 1``, the squared
            coefficient of variation of the prompts' mean mixture weights (Shazeer et al., ICLR
            2017). It is 0 if all prompts have the same mean weight.
    """

    n_prompts: int = 8
    temperature: float = 1.0
    mix: Mix = "normalized"
    router_width: int | None = None
    clean_share: float = 0.0
    load_balance: float = 0.0

    default_n_ctx = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.n_prompts, "n_prompts", most=MAX_PROMPTS)
        check_number(self.temperature, "temperature", above=0, high=MOST_WEIGHT)
        check_choice(self.mix, "mix", get_args(Mix))
        if self.router_width is not None:
            check_count(self.router_width, "router_width", most=MOST_WIDTH)
        check_number(self.clean_share, "clean_share", low=0, high=1)
        if self.clean_share == 0:
            self._need_clean_images("clean_share=0", "set clean_share above 0, such as 0.5")
        check_number(self.load_balance, "load_balance", low=0, high=MOST_WEIGHT)


class AMPTTuner(OnlineTuner):
    """AMPT (Adversarial Mixture Prompt Tuning): tunes several text contexts and a router.

    Supports every CLIP model whose text encoder accepts prompts. See `Tuner` for the arguments.
    ``tuner.classifier.routing_weights(images)`` returns the mixture weights of each image.
    """

    method = "ampt"
    paper = "https://arxiv.org/abs/2505.17509"
    Config = AMPTConfig
    presets = presets.AMPT
    config: AMPTConfig
    prompts: PromptMixture

    def build_prompts(self) -> PromptMixture:
        config = self.config
        return PromptMixture(
            config.n_prompts,
            self.n_ctx,
            self.text_width(),
            self.clip.embed_dim,
            hidden=config.router_width,
            temperature=config.temperature,
            mix=config.mix,
            seed=config.seed,
            start=self.context_start(),
        )

    def loss(self, batch: Step) -> Tensor:
        """Return the adversarial cross-entropy with the optional clean and load-balancing terms.

        With ``objective="trades"``, ``(1 - share) beta KL(p_clean || p_adv) + share CE(clean)``
        with the optional load-balancing term.
        """
        share, balance = self.config.clean_share, self.config.load_balance
        clean, adv = batch.both() if share else (None, batch.attacked())
        loss = self.adversarial_loss(adv, clean, batch.labels)
        if clean is not None:
            loss = (1 - share) * loss + share * F.cross_entropy(clean.logits, batch.labels)
        if balance:
            weights = self.prompts.head.weights(F.normalize(adv.features, dim=-1))  # [B, K]
            loss = loss + balance * load_balance(self.whole(weights.mean(dim=0)))
        return loss


def load_balance(mean: Tensor) -> Tensor:
    """Return ``K sum_k mean_b(w_bk)^2 - 1`` of the batch's mean mixture weights ``[K]``."""
    return len(mean) * torch.square(mean).sum() - 1
