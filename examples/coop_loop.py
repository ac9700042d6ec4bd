"""Adversarial prompt tuning of CLIP in the style of CoOp (Zhou et al., IJCV 2022).

Trainable context tokens between the start token and each class name are tuned on adversarial
images, which PGD computes in each step against the current prompts.
"""

import time
from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchattacks import PGD

import fastprompt

WORDS = "a photo of a"  # the initial context
EPS, ALPHA, STEPS = 1 / 255, 0.5 / 255, 3


def start_context(clip: open_clip.CLIP) -> Tensor:
    """Return the token embeddings of `WORDS`, ``[M, width]``."""
    n_ctx = len(WORDS.split())
    ids = open_clip.tokenize(WORDS)[0, 1 : 1 + n_ctx]
    return clip.token_embedding(ids.to(clip.positional_embedding.device)).detach()


class CoOpCLIP(nn.Module):
    """Maps pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]`` with a trainable context."""

    def __init__(self, clip: open_clip.CLIP, classnames: Sequence[str], context: Tensor) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.context = nn.Parameter(context.clone())
        ids = open_clip.tokenize([f"{' '.join('X' * len(context))} {name}." for name in classnames])
        ids = ids.to(clip.positional_embedding.device)
        embedded = clip.token_embedding(ids)
        self.register_buffer("start", embedded[:, :1])
        self.register_buffer("names", embedded[:, 1 + len(context) :])
        self.register_buffer("ends", ids.argmax(dim=1))  # the end token has the largest id
        self.register_buffer("mean", torch.tensor(clip.visual.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(clip.visual.image_std).view(3, 1, 1))

    def class_features(self) -> Tensor:
        """Return the normalized text features, ``[C, D]``."""
        context = self.context.expand(len(self.start), -1, -1)
        x = torch.cat([self.start, context, self.names], dim=1) + self.clip.positional_embedding
        x = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask))
        x = x[torch.arange(len(x), device=x.device), self.ends] @ self.clip.text_projection
        return F.normalize(x, dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.clip.encode_image((images - self.mean) / self.std)
        cosines = F.normalize(features, dim=-1) @ self.class_features().T
        return self.clip.logit_scale.exp() * cosines


def prompted(clip: open_clip.CLIP, classnames: Sequence[str]) -> nn.Module:
    """Return CLIP with a trainable context; all other parameters are frozen."""
    context = start_context(clip)
    return CoOpCLIP(clip, classnames, context)


def attacked(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return PGD's adversarial images against the current context."""
    attack = PGD(model, EPS, ALPHA, STEPS, random_start=False)
    return attack(images, labels)


def tune(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 1,
    batch: int = 32,
    lr: float = 0.5,
    seed: int = 0,
) -> list[float]:
    """Tune the context; return the loss of each step."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            adv = attacked(model, images[rows], labels[rows])
            loss = F.cross_entropy(model(adv), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def main() -> None:
    """Tune on four images of each of 80 classes, with a CLIP small enough for any machine."""
    data = fastprompt.load_data("shapes", shots=4)
    images, labels = data.train.images.float() / 255, data.train.labels
    model = prompted(fastprompt.load_clip("tiny-shapes").model, data.classnames)
    epochs, began = 3, time.perf_counter()
    losses = tune(model, images, labels, epochs=epochs)
    steps, taken = len(losses) // epochs, time.perf_counter() - began
    for epoch in range(epochs):
        print(f"epoch {epoch}: loss {sum(losses[epoch * steps :][:steps]) / steps:.4f}")
    print(f"{taken / len(losses):.2f} s a step")


if __name__ == "__main__":
    main()
