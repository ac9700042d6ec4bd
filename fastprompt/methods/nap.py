"""NAP: tunes prompts in every layer of both encoders, and token refiners that purify features.

Neural Augmented Prompt Tuning (arXiv 2506.12706). Every layer has text prompts, and visual prompts
mapped from them. A token refiner before every image block with deep prompts purifies the class and
patch tokens. Over the epochs, the loss moves from clean to adversarial images, and a consistency
term aligns the layers' outputs on both. Prompts, loss, attack and optimizer follow the authors'
public code.
"""

import dataclasses
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import MOST_TOKENS, check_choice, check_count, check_number
from .._utils.dtypes import at_least_float32
from ..clip.frozen import FrozenCLIP
from ..kernels import layer_consistency
from ..prompts.deep import Coupling, DeepPrompts, MapStart, why_no_deep_prompts
from ..prompts.refiners import RefinerStart
from ..tuning.online import OnlineConfig, OnlineTuner
from ..tuning.step import Step
from . import presets, published

Consistency = Literal["cosine", "mse", "none"]


@dataclasses.dataclass(frozen=True)
class NAPConfig(OnlineConfig):
    """Settings of NAP. Some of the defaults are ours; `published` returns the authors'.

    Attributes:
        depth: number of layers with prompts, from the first, in both encoders; by default all that
            both have.
        refiners: use token refiners in the image encoder; `text_refiners` is separate.
        text_refiners: use token refiners in the text encoder, as the paper describes; the authors'
            code has none.
        refiner_start: initialization of the token refiners: ``"identity"`` starts from the frozen
            features; ``"linear"`` is PyTorch's default for linear layers, as in the authors' code.
        coupling: direction of the maps between the prompts of both encoders in all layers but the
            first: ``"text-to-image"``, or ``"image-to-text"`` as in FAP.
        map_start: initialization of the linear maps in the layers after the first:
            ``"independent"``, or ``"copies"`` of one map, as in the authors' code.
        schedule: weight w of the adversarial loss: ``"linear"`` is the fraction of completed
            epochs, ``"fixed"`` is ``adv_share``.
        adv_share: value of w with ``schedule="fixed"``. An earlier version of the authors' code
            uses 1/2. With ``objective="trades"`` it must be below 1.
        consistency: distance between the image layers' outputs on clean and adversarial images,
            ``"cosine"`` or ``"mse"``; ``"none"`` omits the consistency term, as an earlier version
            of the authors' code does.
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
    coupling: Coupling = "text-to-image"
    map_start: MapStart = "independent"
    schedule: Literal["linear", "fixed"] = "linear"
    adv_share: float = 0.5
    consistency: Consistency = "cosine"

    _reach = 1.5
    _published = published.NAP

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None:
            check_count(self.depth, "depth", most=MOST_TOKENS)
        check_choice(self.refiner_start, "refiner_start", get_args(RefinerStart))
        check_choice(self.coupling, "coupling", get_args(Coupling))
        check_choice(self.map_start, "map_start", get_args(MapStart))
        check_choice(self.schedule, "schedule", ("linear", "fixed"))
        check_number(self.adv_share, "adv_share", low=0, high=1)
        if self.schedule == "fixed" and self.adv_share == 1:
            self._need_clean_images("adv_share=1", "set adv_share below 1, such as 0.5")
        check_choice(self.consistency, "consistency", get_args(Consistency))


class NAPTuner(OnlineTuner):
    """NAP (Neural Augmented Prompt Tuning): tunes text and visual prompts and token refiners.

    Supports CLIP models that use open_clip's text and image transformers. See `Tuner` for the
    arguments.
    """

    method = "nap"
    paper = "https://arxiv.org/abs/2506.12706"
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
            self.n_ctx,
            depth=config.depth,
            refiners=config.refiners,
            text_refiners=config.text_refiners,
            refiner_start=config.refiner_start,
            coupling=config.coupling,
            map_start=config.map_start,
            seed=config.seed,
            start=self.context_start(),
        )

    def loss(self, batch: Step) -> Tensor:
        """Return ``(1 - w) CE(clean) + w CE(adv) + w sum_l (1 - cos(F_l(clean), F_l(adv)))``.

        With ``objective="trades"``, ``beta KL(p_clean || p_adv)`` replaces ``CE(adv)``; schedule
        and consistency term stay.
        """
        config, labels = self.config, batch.labels
        w = batch.progress if config.schedule == "linear" else config.adv_share
        if w == 0 and config.engine == "fast":  # the adversarial terms are zero
            loss = F.cross_entropy(batch.clean().logits, labels)
            self.log(len(labels), loss_clean=loss)
            return loss
        clean, adv = batch.both(keep_layers=config.consistency != "none")
        losses = {
            "clean": F.cross_entropy(clean.logits, labels),
            "adv": self.adversarial_loss(adv, clean, labels),
        }
        loss = (1 - w) * losses["clean"] + w * losses["adv"]
        if config.consistency != "none":
            depth = self.prompts.depth
            pair = compared(clean.layers, depth), compared(adv.layers, depth)
            losses["layers"] = distance(*pair, config.consistency).mean()
            loss = loss + w * losses["layers"]
        self.log(len(labels), **{f"loss_{name}": value for name, value in losses.items()})
        return loss


def compared(layers: list[Tensor], depth: int) -> list[Tensor]:
    """Select the layers of the consistency term, of all blocks' outputs, as the authors' code does.

    These are the inputs of the blocks with deep prompts, and the output of the last block.
    """
    return [*layers[: depth - 1], layers[-1]]


def distance(clean: list[Tensor], adv: list[Tensor], kind: Consistency) -> Tensor:
    """Return the distance between two lists of layer outputs, summed over the layers.

    ``"cosine"`` is 1 minus the cosine similarity of the flattened outputs, ``"mse"`` their mean
    squared difference. Maps ``[B, N, width]`` to ``[B]``; both arguments receive gradients.
    """
    if kind == "cosine":
        return layer_consistency(clean, adv)
    pairs = zip(map(at_least_float32, clean), map(at_least_float32, adv), strict=True)
    return sum((a - b).square().flatten(1).mean(1) for a, b in pairs)  # type: ignore[return-value]
