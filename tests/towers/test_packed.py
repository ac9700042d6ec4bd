"""The image tower for use without gradients: the plain tower's features up to rounding."""

import copy

import open_clip
import pytest
import torch
from helpers.models import SMALL

from fastprompt import load_clip
from fastprompt.towers import ImageTower, packed
from fastprompt.towers.packed import PackedBlock, PackedImageTower, packs

IMAGES = torch.rand(16, 3, 48, 48, generator=torch.Generator().manual_seed(3))  # 160 tokens


def clip_of(quick: bool = False, **vision: object):
    torch.manual_seed(0)
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= vision
    return load_clip(open_clip.CLIP(**config, quick_gelu=quick).eval())


@pytest.fixture
def products(monkeypatch):
    """The names of the products that ran."""
    ran, real = [], PackedBlock._run

    def run(self, x, name, make):
        ran.append(name)
        return real(self, x, name, make)

    monkeypatch.setattr(PackedBlock, "_run", run)
    return ran


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("layers", [(), (0, 1)])
def test_its_features_are_those_of_the_plain_tower(quick, layers, products):
    clip = clip_of(quick)
    assert packs(clip)
    prompts = torch.randn(len(layers), 2, 32) if layers else None
    fast, plain = PackedImageTower(clip, layers), ImageTower(clip, layers)
    with torch.no_grad():
        found, wanted = fast(IMAGES, prompts), plain(IMAGES, prompts)
        again = fast(IMAGES, prompts)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert torch.equal(found, again)
    assert {"rows 0-96", "rows 32-96", "out", "first", "last"} <= set(products)


def test_new_weights_are_packed_again():
    clip = clip_of()
    fast = PackedImageTower(clip)
    with torch.no_grad():
        before = fast(IMAGES)
        clip.load_state_dict({k: v * 1.1 for k, v in clip.state_dict().items()})
        assert not torch.allclose(before, fast(IMAGES))
        wanted = ImageTower(clip)(IMAGES)
        assert float((fast(IMAGES) - wanted).norm() / wanted.norm()) < 1e-6


def test_with_gradients_few_tokens_and_in_float64_it_is_the_plain_tower(products):
    clip = clip_of()
    fast, plain = PackedImageTower(clip), ImageTower(clip)
    x = IMAGES.clone().requires_grad_()
    assert torch.equal(fast(x), plain(x))
    with torch.no_grad():
        assert torch.equal(fast(IMAGES[:1]), plain(IMAGES[:1]))
        clip.double()
        assert torch.equal(fast(IMAGES), plain(IMAGES))
    assert not packs(clip)
    assert products == []


def test_a_copy_makes_its_own_products(small_clip):
    fast = small_clip.zero_shot(["a", "b"]).for_inference()
    with torch.no_grad():
        wanted = fast(IMAGES)
        assert torch.equal(copy.deepcopy(fast)(IMAGES), wanted)
    assert fast.for_inference() is fast


def test_it_is_chosen_where_the_operations_are_right(small_clip, monkeypatch):
    classifier = small_clip.zero_shot(["a", "b"])
    assert type(classifier.for_inference().image_tower) is PackedImageTower
    assert type(classifier.image_tower) is ImageTower
    assert classifier.in_precision("fp64").for_inference().precision == "fp64"
    packed._works.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert classifier.for_inference() is classifier
    packed._works.cache_clear()


class Adapted(torch.nn.Linear):
    """A layer that computes more than its weight says."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("how", ["hook", "subclass"])
def test_it_is_not_chosen_where_blocks_compute_more_than_their_weights_say(how):
    clip = clip_of()
    mlp = clip.model.visual.transformer.resblocks[0].mlp
    if how == "hook":
        mlp.register_forward_hook(lambda module, given, out: 2 * out)
    else:
        layer = Adapted(*reversed(mlp.c_fc.weight.shape))
        layer.load_state_dict(mlp.c_fc.state_dict())
        mlp.c_fc = layer
    clip = load_clip(clip.model)
    classifier = clip.zero_shot(["a", "b"])
    fast = classifier.for_inference()
    with torch.no_grad():
        assert torch.allclose(fast(IMAGES), classifier(IMAGES), rtol=1e-5, atol=1e-5)
    assert type(classifier.image_tower) is ImageTower
    assert fast is classifier
