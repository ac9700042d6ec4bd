"""FAB and Square on models and images of unusual shapes."""

import math

import pytest
import torch
from torch import nn

from fastprompt.attacks import FAB, AutoAttack, Square

ATTACKS = {
    "fab": lambda model, eps, batch=None: FAB(model, eps, 4, batch=batch),
    "square": lambda model, eps, batch=None: Square(model, eps, 40, batch=batch),
}
MAKE = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)


class Flat(nn.Module):
    def __init__(self, pixels, classes):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(pixels, classes, generator=gen))

    def forward(self, x):
        return x.flatten(1) @ self.weight


def case(n=3, shape=(3, 6, 6), classes=4):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))
    model = Flat(math.prod(shape), classes)
    return model, x, model(x).argmax(1)


@MAKE
@pytest.mark.parametrize(
    ("n", "shape", "classes"),
    [
        pytest.param(3, (3, 6, 6), 2, id="two classes"),
        pytest.param(1, (3, 6, 6), 4, id="one image, more targets than classes"),
        pytest.param(3, (1, 5, 9), 12, id="one channel"),
        pytest.param(3, (40, 3, 2), 4, id="forty channels"),
        pytest.param(3, (3, 2, 30), 4, id="squares larger than the image"),
        pytest.param(3, (3, 1, 1), 4, id="one pixel"),
        pytest.param(0, (3, 6, 6), 4, id="no image"),
    ],
)
def test_shapes(make, n, shape, classes):
    model, x, y = case(n, shape, classes)
    for eps, batch in ((0.0, None), (0.5, 2)):  # the batch is smaller than the targets
        result = make(model, eps, batch).run(x, y)
        assert result.images.shape == x.shape
        assert ((result.images - x).abs() <= eps + 1e-7).all()
        assert ((result.images >= 0) & (result.images <= 1)).all()
        assert torch.equal(result.success, model(result.images).argmax(1) != y)
        assert result.success.any() == (eps > 0 and n > 0)
    assert model.weight.grad is None
    assert model.weight.requires_grad


@MAKE
def test_nan_logits(make):
    model, x, y = case()

    def nan(images):
        logits = model(images)
        return torch.where(images.mean(dim=(1, 2, 3))[:, None] > 0, torch.nan, logits)

    result = make(nan, 0.1).run(x, y)
    assert not result.success.any()
    assert result.images.isfinite().all()
    assert ((result.images - x).abs() <= 0.1 + 1e-7).all()


@MAKE
def test_images_that_are_fooled_already(make):
    model, x, y = case()
    result = make(model, 0.01).run(x, (y + 1) % 4)
    assert result.success.all()
    assert (result.fell_at == 0).all()


@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_autoattack(eps, monkeypatch):
    model, x, y = case(4, (1, 5, 4), 3)
    attack = AutoAttack(model, eps, batch=2)
    for name, steps in (("apgd-ce", 3), ("apgd-t", 3), ("fab-t", 3)):
        attack.attacks[name].steps = steps
    attack.attacks["square"].queries = 9
    result = attack.run(x, y)
    assert torch.equal(result.success, model(result.images).argmax(1) != y)
    assert ((result.images - x).abs() <= eps + 1e-7).all()
