"""Base classes of the methods that attack the current prompts in every step."""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    MOST_WEIGHT,
    MOST_WORKERS,
    Fraction,
    check_choice,
    check_count,
    check_number,
)
from .._utils.distributed import add_up_, is_first, own_part
from .._utils.seeds import stream
from ..attacks.ascent import Clamp
from ..attacks.losses import kl_divergence
from ..data.augment import RandomCrops
from ..data.dataset import ImageDataset
from ..data.device_images import Pictures
from ..data.picture_crops import PictureCrops
from ..model.outputs import Seen
from .attack_loss import AttackLoss, check_attack_loss, check_enough_classes
from .config import TunerConfig, parse_distances
from .online_pgd import OnlinePGD
from .parts import own_batch
from .step import Step
from .tuner import Tuner

Objective = Literal["ce", "trades"]

_VAL_DRAW = 2**32 - 1  # `draw` of the random starts on validation images; no epoch uses it


@dataclasses.dataclass(frozen=True)
class OnlineConfig(TunerConfig):
    """Settings of every method that computes new adversarial images in each step.

    Attributes:
        eps: radius of the attack, in pixel units: a float, or a string such as ``"4/255"``.
        eps_min: smallest radius; each epoch draws the radius of each image uniformly from
            [eps_min, eps]. By default the radius of all images is eps.
        steps: gradient steps of the attack.
        alpha: step size of the attack; by default ``min(1, 2 / steps) * eps``, 2/3 eps for 3 steps
            (NAP: ``min(1, 1.5 / steps) * eps``, 0.3 eps for 5 steps). With ``eps_min``, alpha is
            scaled with the radius of the image.
        random_start: start the attack at a uniformly random point of the ball, instead of at the
            clean image.
        clamp: when the attack clamps the pixels to [0, 1]: ``"always"``, at the random start and
            in each step; ``"steps"``, in each step only; ``"inputs"``, only in the model's input
            and after the last step, as APT's authors do; ``"end"``, only after the last step, as
            NAP's authors do.
        attack_loss: loss that the attack increases: ``"ce"``, ``"margin"``, ``"dlr"``,
            ``"targeted-dlr"``, ``"kl"`` or ``"mixed"``, see `OnlinePGD`. By default ``"ce"``, as
            published, and with ``objective="trades"`` ``"kl"``, as in TRADES.
        objective: ``"ce"``, the method's own loss, or ``"trades"`` (Zhang et al., ICML 2019): in
            place of the cross-entropy of the adversarial images, with the same weight, the loss has
            ``trades_beta * KL(p(x) || p(x'))`` of the clean image x and the adversarial image x'.
            The cross-entropy of the clean images keeps its weight and must not be 0; where the
            method has none, it is added with the weight 1. All other terms of the method stay.
        trades_beta: weight of the divergence, above 0. TRADES uses 1 and 6.
        augment: apply random resized crops and horizontal flips to the training images.
        crop_min: area of the smallest crop, as a fraction of the image.
        crops: how the crops are cut. ``"fast"``: on the device, bilinearly, from the image that the
            model would see in an evaluation. The margins that its center crop leaves out are never
            seen, and a small crop is more blurred. ``"exact"``: by threads of the CPU, from the
            original picture, bicubic with antialiasing, as in public code.
        workers: processes that decode images; 0 decodes in the main process. With random crops and
            ``crops="exact"``, threads decode the training images instead, one for each CPU, at most
            8, and processes only the validation images.
    """

    keep: Literal["best", "last"] = "best"
    eps: Fraction = 4 / 255
    eps_min: Fraction | None = None
    steps: int = 3
    alpha: Fraction | None = None
    random_start: bool = True
    clamp: Clamp = "always"
    attack_loss: AttackLoss | None = None
    objective: Objective = "ce"
    trades_beta: float = 6.0
    augment: bool = True
    crop_min: float = 0.08
    crops: Literal["fast", "exact"] = "fast"
    workers: int = 0

    _reach: ClassVar[float] = 2.0  # radii that all steps with the default alpha move at most

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps", most=MOST_STEPS)
        check_count(self.workers, "workers", least=0, most=MOST_WORKERS)
        parse_distances(self, "eps", "eps_min", "alpha", zero=("eps_min",))
        if self.eps_min is not None and float(self.eps_min) > self.radius:
            raise ValueError(f"eps_min must be at most eps={self.eps}, got {self.eps_min}")
        check_choice(self.clamp, "clamp", get_args(Clamp))
        check_choice(self.objective, "objective", get_args(Objective))
        check_number(self.trades_beta, "trades_beta", above=0, high=MOST_WEIGHT)
        check_attack_loss(self.attacked_loss, random_start=self.random_start)
        check_number(self.crop_min, "crop_min", above=0, high=1)
        check_choice(self.crops, "crops", ("fast", "exact"))

    @property
    def radius(self) -> float:
        """eps as a float."""
        return float(self.eps)

    @property
    def step_size(self) -> float:
        """alpha as a float, or its default value if alpha is None."""
        if self.alpha is None:
            return min(1.0, self._reach / self.steps) * self.radius
        return float(self.alpha)

    @property
    def attacked_loss(self) -> AttackLoss:
        """attack_loss, or its default value if attack_loss is None."""
        if self.attack_loss is None:
            return "kl" if self.objective == "trades" else "ce"
        return self.attack_loss

    def _need_clean_images(self, setting: str, remedy: str) -> None:
        """Raise if the objective is TRADES, which ``setting`` would leave without clean images."""
        if self.objective == "trades":
            raise ValueError(
                f"objective needs the cross-entropy of clean images with 'trades', but {setting} "
                f"leaves none: {remedy}"
            )


class OnlineTuner(Tuner):
    """Base class of the methods whose loss uses new adversarial images in each step; see `Step`.

    Images are decoded once and kept on the device if they fit into its memory; they are augmented
    on the device, unless ``crops="exact"``. Validation uses the attack settings of training.
    """

    shots = 16
    job: ClassVar[Mapping[str, Any]] = {**Tuner.job, "attacks": "clean,pgd-20"}
    score = "val_robust"
    config: OnlineConfig

    @abstractmethod
    def loss(self, batch: Step) -> Tensor:
        """Return the method's loss of a step, the mean over its images."""

    def _start(self) -> None:
        check_enough_classes(self.config.attacked_loss, len(self.classnames))
        super()._start()

    def adversarial_loss(self, adv: Seen, clean: Seen | None, labels: Tensor) -> Tensor:
        """Return the loss's term of adversarial images, the mean over the images.

        It is the cross-entropy, or with ``objective="trades"`` the weighted divergence from the
        clean prediction, whose gradient reaches both.
        """
        if self.config.objective == "ce":
            return F.cross_entropy(adv.logits, labels)
        assert clean is not None
        return self.config.trades_beta * kl_divergence(clean.logits, adv.logits).mean()

    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        config, device = self.config, self.clip.device
        options: dict[str, Any] = {
            "progress": progress and is_first(),
            "classes": len(self.classnames),
        }
        crops = RandomCrops((config.crop_min, 1.0), seed=config.seed)
        exact = config.augment and config.crops == "exact"
        self._exact = PictureCrops(train, device, crops, name="train", **options) if exact else None
        self._crops = crops if config.augment else None
        self._pictures = {
            name: Pictures(data, device, workers=config.workers, name=name, **options)
            for name, data in (("train", None if exact else train), ("val", val))
            if data is not None
        }
        self._examples = len(train)
        self.model.batch = own_batch(min(config.batch, len(train)))
        self._attack = OnlinePGD(
            self.model,
            config.eps,
            config.step_size,
            config.steps,
            attack_loss=config.attacked_loss,
            random_start=config.random_start,
            clamp=config.clamp,
            seed=config.seed,
        )
        return len(train)

    def batches(self, order: Tensor, epoch: int) -> Iterator[tuple[int, Step]]:
        config = self.config
        radii = self._radii(self._examples, epoch)  # more than the order's with `drop_last`
        for rows, images, labels in self._images(order, epoch):
            step = Step(
                self.model,
                self._attack,
                images,
                labels,
                rows,
                progress=epoch / config.epochs,
                draw=epoch,
                radius=None if radii is None else radii[rows],
            )
            yield len(rows), step
            if step.result is not None:
                self.log(len(rows), stalled=step.result.health.stalled.float().mean())

    def _images(self, order: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows, augmented images and labels, on the device."""
        crops, batch = self._crops, self.own_batch
        if self._exact is not None:
            yield from self._exact.batches(order, batch, epoch)
            return
        pictures = self._pictures["train"]
        boxes = None if crops is None else crops.draw(self._examples, epoch).to(self.clip.device)
        for rows, images, labels in pictures.batches(order, batch):
            if crops is not None and boxes is not None:
                images = crops(images, boxes[rows])
            yield rows, images, labels

    def release(self) -> None:
        for name in ("_pictures", "_exact"):
            vars(self).pop(name, None)

    def _radii(self, examples: int, epoch: int) -> Tensor | None:
        """Return each training image's radius, ``[N]``; it depends only on seed and epoch."""
        config = self.config
        if config.eps_min is None:
            return None
        least = float(config.eps_min)
        generator = torch.Generator().manual_seed(stream(config.seed, "radii", epoch))
        shares = torch.rand(examples, generator=generator, dtype=torch.float32)
        return (least + (config.radius - least) * shares).to(self.clip.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return clean and robust accuracy on the validation images, under the training attack."""
        pictures = self._pictures.get("val")
        if pictures is None:
            return {}
        prepared = self.model.prepare() if self.model.engine == "fast" else None
        hits = torch.zeros(3, dtype=torch.int64, device=self.clip.device)
        order = own_part(torch.arange(len(pictures)))
        for rows, images, labels in pictures.batches(order, self.own_batch):
            result = self._attack(images, labels, rows, prepared, draw=_VAL_DRAW)
            pair = self.model.pair(images, result.images, prepared)
            right = [(x.argmax(1) == labels) & ~x.isnan().any(1) for x in pair]
            # an image without a usable gradient does not count as robust
            stalled = result.health.stalled
            robust = right[0] & right[1] & ~stalled
            hits += torch.stack([right[0].sum(), robust.sum(), stalled.sum()])
        add_up_(hits)
        shares = (count / len(pictures) for count in hits.tolist())
        return dict(zip(("val_accuracy", "val_robust", "val_stalled"), shares, strict=True))
