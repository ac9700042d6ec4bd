"""AdvPT: tunes a text context on a bank of adversarial image embeddings.

Zhang et al., "Adversarial prompt tuning for vision-language models", ECCV 2024 (arXiv 2311.11261).
Phase 1 attacks the frozen image encoder, without any text, once per training image. Phase 2 aligns
the context with the stored embeddings; it neither decodes nor attacks images.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    MOST_WORKERS,
    Fraction,
    check_choice,
    check_count,
    check_labels,
    check_path,
)
from .._utils.distributed import add_up_, is_first, own_part
from ..attacks import FeaturePGD
from ..attacks.ascent import Clamp
from ..attacks.random_start import Sides
from ..clip.parts import why_no_visual_prompts
from ..data.dataset import ImageDataset
from ..prompts.context import TextContext
from ..towers.compare import gap
from ..tuning.config import TunerConfig, parse_distances
from ..tuning.tuner import Tuner
from . import presets, published
from .advpt_bank import make_bank


@dataclasses.dataclass(frozen=True)
class AdvPTConfig(TunerConfig):
    """Settings of AdvPT. The defaults are the authors', except for ``start`` and ``clamp``.

    Attributes:
        eps: radius of the attack on the image encoder, in pixel units: a float, or a string such as
            ``"8/255"``.
        steps: gradient steps of the attack.
        alpha: step size of the attack, in pixel units; by default ``1.25 * eps / steps``.
        start: random start of the attack: ``"two-sided"`` is uniform in [-eps, eps];
            ``"one-sided"`` is uniform in [0, eps], as in the authors' code.
        clamp: when the attack clamps the pixels to [0, 1]: ``"always"``, at the random start and
            in each step; ``"steps"``, in each step only, as in the authors' code; ``"inputs"``,
            only in the encoder's input and after the last step; ``"end"``, only after the last
            step.
        attack_batch: images per batch of the attack.
        bank_dir: folder in which the embedding banks are stored, to share them between runs; by
            default ``banks`` in the run folder.
        workers: processes that decode images for the bank; 0 decodes in the main process.
    """

    eps: Fraction = 8 / 255
    steps: int = 10
    alpha: Fraction | None = None
    start: Sides = "two-sided"
    clamp: Clamp = "always"
    attack_batch: int = 128
    bank_dir: str | Path | None = None
    workers: int = 0

    default_n_ctx = 32
    _published = published.ADVPT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps", most=MOST_STEPS)
        check_count(self.attack_batch, "attack_batch")
        check_count(self.workers, "workers", least=0, most=MOST_WORKERS)
        parse_distances(self, "eps", "alpha")
        if self.bank_dir is not None:
            object.__setattr__(self, "bank_dir", str(check_path(self.bank_dir, "bank_dir")))
        check_choice(self.start, "start", get_args(Sides))
        check_choice(self.clamp, "clamp", get_args(Clamp))


_ROWS = 4096  # embeddings evaluated at once: the logits of a whole bank can take gigabytes


class AdvPTTuner(Tuner):
    """AdvPT (Adversarial Prompt Tuning): tunes a text context on adversarial image embeddings.

    Supports every CLIP model whose text encoder accepts prompts. See `Tuner` for the arguments.
    """

    method = "advpt"
    paper = "https://arxiv.org/abs/2311.11261"
    Config = AdvPTConfig
    presets = presets.ADVPT
    takes_runner = True  # which computes the banks
    score = "val_accuracy"  # accuracy on adversarial embeddings
    config: AdvPTConfig
    prompts: TextContext

    def build_prompts(self) -> TextContext:
        return TextContext(
            self.n_ctx, self.text_width(), seed=self.config.seed, start=self.context_start()
        )

    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        config = self.config
        attack = FeaturePGD(
            self.model.image_features,
            config.eps,
            config.steps,
            config.alpha,
            start=config.start,
            clamp=config.clamp,
            seed=config.seed,
        )
        folder = Path(config.bank_dir) if config.bank_dir else out and out / "banks"
        towers = f"{config.engine}/{config.precision}"
        if not why_no_visual_prompts(self.clip.model):
            found = gap(self.clip, "image", "fast")
            # the fingerprint of a model does not contain its hooks and overridden methods
            towers += "" if found.exact else f"/{found.distance:.1e}"
        self._banks: dict[str, tuple[Tensor, Tensor]] = {}
        for name, data in (("train", train), ("val", val)):
            if data is None:
                continue
            bank = make_bank(
                self.clip,
                data,
                attack,
                batch=config.attack_batch,
                towers=towers,
                folder=folder,
                workers=config.workers,
                title=f"{name} bank",
                progress=progress,
                runner=self.runner,
            )
            check_labels(bank.labels, len(data), len(self.classnames), f"labels of {name}")
            for reason in bank.health.reasons if is_first() else ():
                warnings.warn(f"the {name} bank is unreliable: {reason}", stacklevel=3)
            device = self.clip.device
            self._banks[name] = (bank.features.to(device), bank.labels.to(device))
        return len(train)

    def loss(self, batch: Tensor) -> Tensor:
        """Return the cross-entropy of ``logit_scale * cos(bank, t_c)`` on the adversarial bank."""
        features, labels = self._banks["train"]
        logits = self.model.logits(features[batch], self.model.class_features())
        return F.cross_entropy(logits, labels[batch])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        text = self.model.prepare().text
        out = {}
        for name, (features, labels) in self._banks.items():
            own = (own_part(each).split(_ROWS) for each in (features, labels))
            hits = torch.zeros((), dtype=torch.int64, device=self.clip.device)
            for f, y in zip(*own, strict=True):
                hits += (self.model.logits(f, text).argmax(dim=1) == y).sum()
            add_up_(hits)
            out["accuracy" if name == "train" else "val_accuracy"] = float(hits / len(labels))
        return out
