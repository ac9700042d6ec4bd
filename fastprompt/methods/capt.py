"""CAPT: tunes multi-modal prompts that stay consistent with a frozen CLIP model.

Consistency-guided Adversarial Prompt Tuning (arXiv 2405.11154). The loss has the published form,
``CE + lam [(1 - alpha) L_train + alpha L_frozen]``. How alpha balances the two consistency terms is
our choice; the setting ``balance`` selects it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import (
    MOST_TOKENS,
    MOST_WEIGHT,
    check_choice,
    check_count,
    check_number,
    check_templates,
)
from ..clip.frozen import TEMPLATES, FrozenCLIP
from ..data.dataset import ImageDataset
from ..kernels import consistency_loss
from ..prompts.deep import Coupling, DeepPrompts, why_no_deep_prompts
from ..tuning.frozen_features import frozen_features
from ..tuning.online import OnlineConfig, OnlineTuner
from ..tuning.step import Step
from . import presets

Balance = Literal["constant", "linear", "confidence"]
Direction = Literal["adv||target", "target||adv"]


@dataclasses.dataclass(frozen=True)
class CAPTConfig(OnlineConfig):
    """Settings of CAPT. We could not read the authors' values; the defaults are our choice.

    Attributes:
        depth: number of layers with prompts, from the first, in both encoders; by default all that
            both have.
        coupling: direction of the maps between the prompts of both encoders in all layers but the
            first: ``"text-to-image"``, or ``"image-to-text"`` as in FAP.
        lam: weight of the consistency terms; 0 leaves only the cross-entropy.
        balance: alpha, the weight of the consistency with the frozen model; the consistency with
            the tuned model's clean prediction has the weight 1 - alpha. ``"constant"``: alpha is
            ``balance_value``; ``"linear"``: the fraction of completed epochs; ``"confidence"``: the
            frozen model's mean probability of the true classes on the clean images of the batch.
        balance_value: value of alpha with ``balance="constant"``.
        ce: images of the cross-entropy term: ``"clean"``, the likelier reading of the paper, or
            ``"adv"``. ``objective="trades"`` needs ``"clean"``.
        train_kl: direction of the divergence to the tuned model's clean prediction:
            ``"adv||target"`` is KL(adv || target), ``"target||adv"`` is KL(target || adv).
        frozen_kl: direction of the divergence to the frozen model's prediction, as ``train_kl``.
        detach_targets: stop the gradient of the consistency term at the tuned model's clean logits.
        guide_template: prompt template of the frozen model, with one ``{}`` for the class name. By
            default ``"a photo of a {}."``; `fastprompt tune` and protocols use the data set's own
            template if it has exactly one, such as ``"{} texture."`` for CoOp's DTD.
            ``config.json`` stores the template.
    """

    lr: float = 0.0025
    steps: int = 2
    depth: int | None = None
    coupling: Coupling = "text-to-image"
    lam: float = 1.0
    balance: Balance = "confidence"
    balance_value: float = 0.5
    ce: Literal["adv", "clean"] = "clean"
    train_kl: Direction = "adv||target"
    frozen_kl: Direction = "adv||target"
    detach_targets: bool = True
    guide_template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None:
            check_count(self.depth, "depth", most=MOST_TOKENS)
        check_choice(self.coupling, "coupling", get_args(Coupling))
        check_number(self.lam, "lam", low=0, high=MOST_WEIGHT)
        check_choice(self.balance, "balance", get_args(Balance))
        check_number(self.balance_value, "balance_value", low=0, high=1)
        check_choice(self.ce, "ce", ("adv", "clean"))
        if self.ce == "adv":
            self._need_clean_images("ce='adv'", "set ce='clean'")
        if self.guide_template is not None:
            check_templates(self.guide_template, "guide_template")
        for name in ("train_kl", "frozen_kl"):
            check_choice(getattr(self, name), name, get_args(Direction))


class CAPTTuner(OnlineTuner):
    """CAPT (Consistency-guided Adversarial Prompt Tuning): tunes text and visual prompts.

    Supports CLIP models that use open_clip's text and image transformers. See `Tuner` for the
    arguments.
    """

    method = "capt"
    paper = "https://arxiv.org/abs/2405.11154"
    Config = CAPTConfig
    presets = presets.CAPT
    config: CAPTConfig
    prompts: DeepPrompts

    @classmethod
    def unfit(cls, clip: FrozenCLIP) -> str:
        return why_no_deep_prompts(clip)

    @classmethod
    def settings_from(cls, templates: Sequence[str]) -> dict[str, Any]:
        return {"guide_template": templates[0]} if len(templates) == 1 else {}

    def _start(self) -> None:
        super()._start()
        if self.config.guide_template is None:
            self.config = dataclasses.replace(self.config, guide_template=TEMPLATES[0])

    def build_prompts(self) -> DeepPrompts:
        config = self.config
        return DeepPrompts.for_clip(
            self.clip,
            self.n_ctx,
            depth=config.depth,
            coupling=config.coupling,
            seed=config.seed,
            start=self.context_start(),
        )

    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        config = self.config
        examples = super().prepare(train, val, out, progress)
        assert config.guide_template is not None
        self.guide = self.clip.zero_shot(
            self.classnames,
            config.guide_template,
            engine=config.engine,
            precision=config.precision,
        )
        self._known: Tensor | None = None
        if not config.augment and config.engine == "fast":
            self._known = frozen_features(
                self.guide.encode_image,
                train,
                device=self.clip.device,
                batch=config.batch,
                workers=config.workers,
                progress=progress,
            )
        return examples

    def release(self) -> None:
        super().release()
        self._known = None

    @torch.no_grad()
    def frozen_logits(self, batch: Step) -> Tensor:
        """Return the frozen model's logits on the clean images, ``[B, C]``."""
        known = self._known
        features = self.guide.encode_image(batch.images) if known is None else known[batch.rows]
        return self.guide.logits(features)

    def alpha(self, frozen: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Return alpha, the weight of the consistency with the frozen model, as a scalar tensor."""
        kind = self.config.balance
        if kind == "confidence":
            return self.whole(confidence(frozen, labels))
        # filled on the device: a copy from the host would synchronize
        return frozen.new_full((), self.config.balance_value if kind == "constant" else progress)

    def loss(self, batch: Step) -> Tensor:
        """Return ``CE + lam [(1 - alpha) KL(p_adv, p_clean) + alpha KL(p_adv, p_frozen)]``.

        ``objective="trades"`` adds ``beta KL(p_clean || p_adv)``, whose gradient reaches both; the
        consistency terms stay, with their own directions and targets.
        """
        config, labels = self.config, batch.labels
        if config.lam == 0 and config.ce == "adv" and config.engine == "fast":
            return F.cross_entropy(batch.attacked().logits, labels)  # the other terms are zero
        # clean logits that serve only as a target need no graph
        target_only = config.detach_targets and config.ce == "adv"
        if target_only and config.engine == "fast":
            with torch.no_grad():
                clean = batch.clean()
            adv = batch.attacked()
        else:
            clean, adv = batch.both()
        frozen = self.frozen_logits(batch)
        alpha = self.alpha(frozen, labels, batch.progress)
        loss, terms = consistency_loss(
            adv.logits,
            clean.logits,
            frozen,
            labels,
            alpha=alpha.expand(len(labels)),
            lam=config.lam,
            ce=config.ce,
            train_kl=config.train_kl,
            frozen_kl=config.frozen_kl,
            detach_targets=config.detach_targets,
            return_terms=True,
        )
        ce, train, frozen_term = terms.mean(dim=0).unbind()
        self.log(len(labels), ce=ce, kl_train=train, kl_frozen=frozen_term, alpha=alpha)
        if config.objective == "ce":
            return loss.mean()
        trades = self.adversarial_loss(adv, clean, labels)
        self.log(len(labels), trades=trades)
        return loss.mean() + trades


def confidence(frozen: Tensor, labels: Tensor) -> Tensor:
    """Return the mean probability of the true classes, which is high if the model is right."""
    return frozen.softmax(dim=1).gather(1, labels[:, None]).mean()
