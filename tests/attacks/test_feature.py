"""The attack on the image encoder."""

import math

import pytest
import torch

from fastprompt.attacks import FeaturePGD
from fastprompt.attacks.losses import kl_divergence
from fastprompt.attacks.random_start import random_start


def test_kl_divergence_equals_its_definition():
    gen = torch.Generator().manual_seed(0)
    clean, adv = torch.randn(2, 3, 7, generator=gen, dtype=torch.float64)
    for row in range(3):
        p = [math.exp(v) for v in clean[row].tolist()]
        q = [math.exp(v) for v in adv[row].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        slow = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert kl_divergence(clean, adv)[row].item() == pytest.approx(slow, rel=1e-12)


def test_raises_the_loss_and_stays_inside(small_clip, images):
    clean = small_clip.encode_image(images)
    attack = FeaturePGD(small_clip.encode_image, "8/255", steps=5)
    assert attack.alpha == pytest.approx(1.25 * 8 / 255 / 5)
    result = attack.run(images)
    start = random_start(images, 8 / 255, torch.arange(4), seed=0, sides="two-sided")
    before = kl_divergence(clean, small_clip.encode_image(start))
    after = kl_divergence(clean, small_clip.encode_image(result.images))
    assert (after > before).all()
    assert result.trusted
    assert (result.images - images).abs().max() <= 8 / 255 + 1e-7
    assert result.images.min() >= 0
    assert result.images.max() <= 1


def test_one_sided_start_only_brightens(images):
    dark = images * 0.5
    one = random_start(dark, 0.1, torch.arange(4), seed=0, sides="one-sided") - dark
    two = random_start(dark, 0.1, torch.arange(4), seed=0, sides="two-sided") - dark
    assert one.min() >= 0
    assert two.min() < -0.09
    assert max(one.max(), two.max()) <= 0.1 + 1e-7


@pytest.mark.parametrize("clamp", ["always", "steps", "inputs", "end"])
def test_pixels_are_clamped_when_the_setting_says(small_clip, images, clamp):
    """Against PGD written out, on images with many black and white pixels."""
    double = small_clip.model.double()
    try:
        x, indices = (4 * images.double() - 1.5).clamp(0, 1), torch.arange(4)
        encode, eps, alpha = small_clip.encode_image, 8 / 255, 3 / 255
        attack = FeaturePGD(encode, eps, 3, alpha, start="one-sided", clamp=clamp)
        adv = random_start(x, eps, indices, seed=0, sides="one-sided", clamp=False)
        assert adv.max() > 1
        if clamp == "always":
            adv = adv.clamp(0, 1)
        for _ in range(3):
            seen = (adv.clamp(0, 1) if clamp == "inputs" else adv).detach().requires_grad_()
            loss = kl_divergence(encode(x).detach(), encode(seen)).sum()
            adv = adv + alpha * torch.autograd.grad(loss, seen)[0].sign()
            adv = x + (adv - x).clamp(-eps, eps)
            adv = adv.clamp(0, 1) if clamp in ("always", "steps") else adv
        ours = attack.run(x, indices=indices).images
        assert torch.equal(ours, adv.clamp(0, 1))
        other = FeaturePGD(encode, eps, 3, alpha, start="one-sided").run(x, indices=indices)
        assert torch.equal(ours, other.images) == (clamp == "always")
    finally:
        double.float()


def test_splitting_a_batch_changes_no_image(small_clip, images):
    double = small_clip.model.double()
    try:
        attack = FeaturePGD(small_clip.encode_image, 0.05, steps=2, seed=1)
        indices = torch.tensor([3, 1, 4, 9])
        whole = attack.run(images.double(), indices=indices).images
        parts = [
            attack.run(images[i : i + 1].double(), indices=indices[i : i + 1]).images
            for i in range(4)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    finally:
        double.float()


def test_bad_settings(small_clip):
    encode = small_clip.encode_image
    with pytest.raises(ValueError, match=r"^start .*'none'"):
        FeaturePGD(encode, start="none")
    with pytest.raises(ValueError, match=r"^clamp .*'always'.*'never'"):
        FeaturePGD(encode, clamp="never")
    with pytest.raises(ValueError, match=r"^eps .*0.*0"):
        FeaturePGD(encode, eps=0)
    with pytest.raises(ValueError, match=r"^steps .*1.*0"):
        FeaturePGD(encode, steps=0)


def test_empty_batch(small_clip, images):
    assert FeaturePGD(small_clip.encode_image).run(images[:0]).images.shape == (0, 3, 48, 48)
