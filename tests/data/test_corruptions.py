"""The corrupted photographs."""

import pytest
import torch
from torchvision.transforms import v2

from fastprompt import load_data
from fastprompt.data import corruptions
from fastprompt.data.splits import Form

ROWS = range(0, 800, 100)


@pytest.fixture(scope="module", autouse=True)
def _few_pictures():
    """Only the pictures that are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        read = corruptions.photos._read

        def few(split, form):
            images, labels = read(split, form)
            return [images[row] for row in ROWS], labels[list(ROWS)]

        patch.setattr(corruptions.photos, "_read", few)
        yield


def images(name, size=64, split="test"):
    found, labels = corruptions.corrupted_source(name).read(split, Form(size))
    assert torch.equal(found.labels, labels)
    return found.images


def clean(size=64):
    found, _ = corruptions.photos._read("test", Form(size))
    return torch.stack([image for image, _ in found])


def change(name):
    return (images(name).float() - clean().float()).square().mean().sqrt().item() / 255


@pytest.mark.parametrize("kind", ["noise", "blur", "contrast", "jpeg"])
def test_a_higher_strength_changes_the_pictures_more(kind):
    weak, middle, strong = (change(f"photos-{kind}-{n}") for n in (1, 2, 3))
    assert 0.01 < weak < middle < strong < 0.25


def test_noise_has_the_stated_deviation_and_depends_on_the_picture_alone():
    assert change("photos-noise-1") == pytest.approx(0.04, rel=0.1)
    one, again = images("photos-noise-2"), images("photos-noise-2")
    assert torch.equal(one, again)
    noise = one.float() - clean().float()
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_the_default_dtype_changes_no_picture(request, name):
    wanted = images(name)
    request.getfixturevalue("double")
    assert torch.equal(images(name), wanted)


@pytest.mark.parametrize("factor", [0.25, 0.6])
def test_contrast_is_torchvisions(factor):
    for image in clean():
        ours = corruptions._contrast(image, factor, torch.Generator())
        assert torch.equal(ours, v2.functional.adjust_contrast(image, factor))


def test_contrast_pulls_the_pixels_to_the_mean_gray():
    x, y = clean().float(), images("photos-contrast-1").float()
    spread = [part.flatten(1).std(dim=1) for part in (x, y)]
    torch.testing.assert_close(spread[1], 0.6 * spread[0], rtol=0.02, atol=0.5)


def test_blur_is_relative_to_the_size():
    small, large = (images("photos-blur-3", size).float() for size in (64, 128))
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved - small).abs().mean() < 4


def test_they_are_data_sets_with_the_classes_of_photos():
    data, own = load_data("photos-jpeg-2", shots=1), load_data("photos")
    assert data.classnames == own.classnames
    assert data.image_size == 64
    assert "directory" not in data.source
    marks = {load_data(name).test.fingerprint for name in ("photos-jpeg-1", "photos-jpeg-2")}
    assert len(marks) == 2
    with pytest.raises(ValueError, match="photos-blur-3"):
        load_data("photos-blur-4")
