"""AdvPT: the attack on the image encoder (phase 1), and a tuning step (phase 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprompt import AdvPTTuner, FrozenCLIP
from fastprompt.attacks import FeaturePGD

from ..common.clips import CLIPS, execution
from ..common.timing import count_flops
from ..common.tuner_steps import NAMES, NOISE

EPS, STEPS = 8 / 255, 10


def advpt(rung: str, clip: FrozenCLIP, names: Sequence[str], n_ctx: int) -> AdvPTTuner:
    """Create the tuner with the implementation's CLIP and a perturbed context."""
    kind = CLIPS[rung]
    tuner = AdvPTTuner(clip, names, **execution(rung, clip), n_ctx=n_ctx)
    if kind is not None:
        tuner.model = kind(clip, names, tuner.prompts)
    with torch.no_grad():
        tokens = tuner.prompts.tokens
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
        tokens += NOISE * noise.to(tokens.device)
    return tuner


class PhaseTwo:
    """Loss and gradient of a batch of embeddings, without images."""

    def __init__(
        self, rung: str, clip: FrozenCLIP, names: Sequence[str], n_ctx: int, batch: int
    ) -> None:
        self.tuner = advpt(rung, clip, names, n_ctx)
        size = clip.encode_text(["a"]).shape[-1]
        features = torch.randn(batch, size, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(batch) % len(names)
        self.tuner._banks = {"train": (features.to(clip.device), labels.to(clip.device))}
        self.rows = torch.arange(batch, device=clip.device)

    def __call__(self) -> dict[str, Tensor]:
        loss = self.tuner.loss(self.rows)
        (gradient,) = torch.autograd.grad(loss, self.tuner.prompts.tokens)
        return {"loss": loss.detach(), "gradient": gradient}


class PhaseOne:
    """Feature PGD on a batch of images; only the image encoder runs."""

    def __init__(self, rung: str, clip: FrozenCLIP, batch: int, steps: int = STEPS) -> None:
        self.tuner = advpt(rung, clip, NAMES[:2], 1)
        self.images = torch.rand(
            batch,
            3,
            clip.image_size,
            clip.image_size,
            generator=torch.Generator().manual_seed(0),
        ).to(clip.device)
        self.indices = torch.arange(batch, device=clip.device)
        self.attack = FeaturePGD(self.tuner.model.image_features, EPS, steps)

    def __call__(self) -> Tensor:
        return self.attack.run(self.images, indices=self.indices).images

    def results(self) -> dict[str, Tensor]:
        """Return features and their pixel gradient, before the sign, for the equality check."""
        pixels = self.images.clone().requires_grad_()
        features = self.tuner.model.image_features(pixels)
        direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad(features, pixels, direction.to(pixels.device))
        return {"features": features.detach(), "pixel gradient": gradient}

    def flops(self) -> int:
        """Count the FLOPs of all steps in a run."""
        return count_flops(self)
