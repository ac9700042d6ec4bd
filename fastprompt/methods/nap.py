"""NAP: prompts in every layer of both towers, and token refiners that purify the image's features.

Neural Augmented Prompt Tuning. Text prompts and the visual prompts mapped from them stand in every
layer; a refiner in front of every image block but the first mends the class and patch tokens. The
loss moves from clean to adversarial images over the epochs, and holds the layers' outputs on both
together. Prompts, loss, attack and optimizer are those of the authors' public code.
"""

import dataclasses
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import check_choice, check_count, check_number
from .._utils.dtypes import at_least_float32
from ..clip.frozen import FrozenCLIP
from ..kernels import layer_consistency
from ..prompts.deep import DeepPrompts, why_no_deep_prompts
from ..prompts.refiners import RefinerStart
from ..tuning.online import OnlineConfig, OnlineTuner
from ..tuning.step import Step
from . import presets

Consistency = Literal["cosine", "mse", "none"]


@dataclasses.dataclass(frozen=True)
class NAPConfig(OnlineConfig):
    """NAP's settings; the defaults are the authors' but for ``refiner_start`` and ``keep``.

    Attributes:
        depth: layers of both towers with prompts of their own; by default all.
        refiners: token refiners in the image tower.
        text_refiners: and in the text tower. In the paper's framing; the released code has none.
        refiner_start: ``"identity"`` starts with the frozen features, ``"linear"`` as the authors'.
        schedule: ``"linear"``: the adversarial share w is the share of the epochs that are done;
            ``"fixed"``: it is ``adv_share`` throughout.
        adv_share: w, where it is fixed; 1/2 in an earlier version of the authors' code.
        consistency: how the layers' outputs on clean and adversarial images are held together:
            ``"cosine"``, ``"mse"`` or ``"none"``, as that version had it.
    """

    epochs: int = 20
    lr: float = 1e-4
    optimizer: Literal["sgd", "adamw"] = "adamw"
    weight_decay: float = 0.01
    steps: int = 5
    depth: int | None = None
    refiners: bool = True
    text_refiners: bool = False
    refiner_start: RefinerStart = "identity"
    schedule: Literal["linear", "fixed"] = "linear"
    adv_share: float = 0.5
    consistency: Consistency = "cosine"

    _reach = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None:
            check_count(self.depth, "depth")
        check_choice(self.refiner_start, "refiner_start", get_args(RefinerStart))
        check_choice(self.schedule, "schedule", ("linear", "fixed"))
        check_number(self.adv_share, "adv_share", low=0, high=1)
        check_choice(self.consistency, "consistency", get_args(Consistency))


class NAPTuner(OnlineTuner):
    """NAP on a CLIP of open_clip's own two transformers. See `Tuner` for the arguments."""

    method = "nap"
    Config = NAPConfig
    presets = presets.NAP
    config: NAPConfig
    prompts: DeepPrompts

    @classmethod
    def unfit(cls, clip: FrozenCLIP) -> str:
        return why_no_deep_prompts(clip)

    def build_prompts(self) -> DeepPrompts:
        config = self.config
        return DeepPrompts.for_clip(
            self.clip,
            config.n_ctx,
            depth=config.depth,
            refiners=config.refiners,
            text_refiners=config.text_refiners,
            refiner_start=config.refiner_start,
            seed=config.seed,
            start=self.context_start(config.ctx_init, config.n_ctx),
        )

    def loss(self, batch: Step) -> Tensor:
        """``(1 - w) CE(clean) + w CE(adv) + w sum_l (1 - cos(F_l(clean), F_l(adv)))``."""
        config, labels = self.config, batch.labels
        w = batch.progress if config.schedule == "linear" else config.adv_share
        if w == 0 and config.engine == "fast":  # no adversarial image has a part in it
            loss = F.cross_entropy(batch.clean().logits, labels)
            self.log(len(labels), loss_clean=loss)
            return loss
        clean, adv = batch.both(keep_layers=config.consistency != "none")
        losses = {
            "clean": F.cross_entropy(clean.logits, labels),
            "adv": F.cross_entropy(adv.logits, labels),
        }
        loss = (1 - w) * losses["clean"] + w * losses["adv"]
        if config.consistency != "none":
            losses["layers"] = distance(clean.layers, adv.layers, config.consistency).mean()
            loss = loss + w * losses["layers"]
        self.log(len(labels), **{f"loss_{name}": value for name, value in losses.items()})
        return loss


def distance(clean: list[Tensor], adv: list[Tensor], kind: Consistency) -> Tensor:
    """How far apart the layers' outputs are, summed over the layers: ``[B, N, width]`` to ``[B]``.

    ``"cosine"`` is 1 minus the cosine of the flattened outputs, ``"mse"`` their mean squared
    difference. Both sides get a gradient.
    """
    if kind == "cosine":
        return layer_consistency(clean, adv)
    pairs = zip(map(at_least_float32, clean), map(at_least_float32, adv), strict=True)
    return sum((a - b).square().flatten(1).mean(1) for a, b in pairs)  # type: ignore[return-value]
