"""PGD on a zero-shot classifier: accuracy on clean and on adversarial images."""

import torch
from torch import Tensor, nn

import fastprompt
from fastprompt import PGD

EPS, ALPHA, STEPS = 2 / 255, 0.5 / 255, 10


def adversarial(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return adversarial images ``[B, 3, H, W]`` within `EPS`; pixels are in [0, 1]."""
    attack = PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
    return attack(images, labels)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of correctly classified images."""
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    """Attack 64 images of the built-in shapes, on a CLIP small enough for any machine."""
    data = fastprompt.load_data("shapes", shots=1)
    images, labels = data.train.images[:64].float() / 255, data.train.labels[:64]
    model = fastprompt.load_clip("tiny-shapes-robust").zero_shot(data.classnames, data.templates)
    print(f"clean    {accuracy(model, images, labels):.3f}")
    print(f"attacked {accuracy(model, adversarial(model, images, labels), labels):.3f}")


if __name__ == "__main__":
    main()
