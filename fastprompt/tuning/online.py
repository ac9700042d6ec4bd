"""What the methods share that attack the prompts as they are, in every step."""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._utils.checks import Fraction, check_count, check_number
from .._utils.seeds import stream
from ..data.augment import RandomCrops
from ..data.dataset import ImageDataset
from ..data.device_images import Pictures
from .config import TunerConfig, parse_distances
from .online_pgd import OnlinePGD
from .step import Step
from .tuner import Tuner

_VAL_DRAW = 2**32 - 1  # the random start on validation images: no epoch's


@dataclasses.dataclass(frozen=True)
class OnlineConfig(TunerConfig):
    """What every method has that makes fresh adversarial images in each step.

    Attributes:
        n_ctx: context tokens.
        ctx_init: words whose embeddings the context starts from (CoOp's option of that name): their
            first ``n_ctx`` tokens, and N(0, 0.02) behind them. By default noise alone.
        eps: radius of the attack, a float in pixel units or such as ``"4/255"``.
        eps_min: draw each image's radius anew in each epoch, uniform in [eps_min, eps]; by default
            all have eps.
        steps: gradient steps of the attack.
        alpha: its step size; by default twice the radius over the steps, at most the radius: 2/3 of
            it at 3 steps (NAP: 1.5 times, 0.3 at 5). With ``eps_min`` it shrinks, too.
        random_start: start from a uniform point of the ball instead of the image.
        augment: random resized crops and horizontal flips of the training images.
        crop_min: the smallest crop, as a share of the image's area.
        workers: processes that decode images; 0 decodes in this one.
    """

    keep: Literal["best", "last"] = "best"
    n_ctx: int = 16
    ctx_init: str | None = None
    eps: Fraction = 4 / 255
    eps_min: Fraction | None = None
    steps: int = 3
    alpha: Fraction | None = None
    random_start: bool = True
    augment: bool = True
    crop_min: float = 0.08
    workers: int = 0

    _reach: ClassVar[float] = 2.0  # all steps together, in radii

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.n_ctx, "n_ctx")
        check_count(self.steps, "steps")
        check_count(self.workers, "workers", least=0)
        parse_distances(self, "eps", "eps_min", "alpha", zero=("eps_min",))
        if self.eps_min is not None and float(self.eps_min) > self.radius:
            raise ValueError(f"eps_min must be at most eps, {self.eps}, got {self.eps_min}")
        check_number(self.crop_min, "crop_min", above=0, high=1)

    @property
    def radius(self) -> float:
        """eps as a number."""
        return float(self.eps)

    @property
    def step_size(self) -> float:
        """alpha as a number, the default filled in."""
        if self.alpha is None:
            return min(1.0, self._reach / self.steps) * self.radius
        return float(self.alpha)


class OnlineTuner(Tuner):
    """A method whose loss is made of fresh adversarial images: see `Step`.

    Images are decoded once and kept on the device where they fit there, augmented there; validation
    has the training attack's threat model.
    """

    job: ClassVar[dict[str, Any]] = {"data": "shapes", "shots": 16, "attacks": "clean,pgd-20"}
    score = "val_robust"
    config: OnlineConfig

    @abstractmethod
    def loss(self, batch: Step) -> Tensor:
        """The method's loss of a step, a mean over its images."""

    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        config, device = self.config, self.clip.device
        self._pictures = {
            name: Pictures(
                data,
                device,
                workers=config.workers,
                name=name,
                progress=progress,
                classes=len(self.classnames),
            )
            for name, data in (("train", train), ("val", val))
            if data is not None
        }
        crops = RandomCrops((config.crop_min, 1.0), seed=config.seed)
        self._crops = crops if config.augment else None
        self._attack = OnlinePGD(
            self.model,
            config.eps,
            config.step_size,
            config.steps,
            random_start=config.random_start,
            seed=config.seed,
        )
        return len(train)

    def batches(self, order: Tensor, epoch: int) -> Iterator[tuple[int, Step]]:
        config, device, examples = self.config, self.clip.device, len(order)
        crops = self._crops
        boxes = None if crops is None else crops.draw(examples, epoch).to(device)
        radii = self._radii(examples, epoch)
        for rows, images, labels in self._pictures["train"].batches(order, config.batch):
            if crops is not None and boxes is not None:
                images = crops(images, boxes[rows])
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

    def release(self) -> None:
        vars(self).pop("_pictures", None)

    def _radii(self, examples: int, epoch: int) -> Tensor | None:
        """Each training image's radius in an epoch, ``[N]``: a function of seed and epoch alone."""
        config = self.config
        if config.eps_min is None:
            return None
        least = float(config.eps_min)
        generator = torch.Generator().manual_seed(stream(config.seed, "radii", epoch))
        shares = torch.rand(examples, generator=generator)
        return (least + (config.radius - least) * shares).to(self.clip.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Clean and robust accuracy on the validation images, under the attack of the training."""
        pictures = self._pictures.get("val")
        if pictures is None:
            return {}
        prepared = self.model.prepare() if self.model.engine == "fast" else None
        hits = torch.zeros(3, dtype=torch.int64, device=self.clip.device)
        for rows, images, labels in pictures.batches(
            torch.arange(len(pictures)), self.config.batch
        ):
            result = self._attack(images, labels, rows, prepared, draw=_VAL_DRAW)
            pair = self.model.pair(images, result.images, prepared)
            right = [(x.argmax(1) == labels) & ~x.isnan().any(1) for x in pair]
            # what the attack had no gradient for is not shown to be robust
            stalled = result.health.stalled
            robust = right[0] & right[1] & ~stalled
            hits += torch.stack([right[0].sum(), robust.sum(), stalled.sum()])
        shares = (count / len(pictures) for count in hits.tolist())
        return dict(zip(("val_accuracy", "val_robust", "val_stalled"), shares, strict=True))
