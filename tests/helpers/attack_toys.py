"""Models whose attacks can be followed by hand, and images for them."""

import torch
from torch import nn


class Linear(nn.Module):
    """Logits linear in the pixels: the attack's optimum is known."""

    def __init__(self, classes=5, size=8, dtype=torch.float32, seed=0):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, 3 * size * size, generator=gen, dtype=torch.float64)
        self.weight = nn.Parameter(weight.to(dtype))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Curved(Linear):
    """Smooth and curved, so that steps overshoot."""

    def forward(self, x):
        return super().forward((12 * x).sin())


def batch(n=4, size=8, dtype=torch.float32, seed=0, classes=5):
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=gen, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (n,), generator=gen)


def close_calls(n=40, seed=0, kind=Linear):
    """A model in float64, images it classifies rightly, and margins that all differ."""
    model = kind(dtype=torch.float64)
    x, _ = batch(n, dtype=torch.float64, seed=seed)
    x = 0.2 + 0.6 * x
    return model, x, model(x).argmax(1)


def fooled(model, x, y):
    return model(x).argmax(1) != y
