"""The bundled models are what their cards say."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import open_clip
import pytest
import torch

from fastprompt import PGD, load_clip, load_data
from fastprompt._utils.checks import parse_fraction
from fastprompt.clip import bundled
from fastprompt.data import ImageTensors
from pretraining.export_shapes import own_world

ASSETS = resources.files("fastprompt.assets")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _two_threads(_one_thread):
    torch.set_num_threads(2)


@torch.no_grad()
def accuracy(classifier, data, n):
    images, labels = data.images[:n].float() / 255, data.labels[:n]
    hits = [
        classifier(x).argmax(1) == y
        for x, y in zip(images.split(100), labels.split(100), strict=True)
    ]
    return torch.cat(hits).float().mean().item()


def zero_shot(clip, data):
    return clip.zero_shot(data.classnames, data.templates)


def test_sizes_and_digests():
    limits = {
        **{"tiny-shapes.safetensors": 16, "tiny-shapes-robust.image.safetensors": 6},
        **{"tiny-photos.safetensors": 20, "tiny-photos-robust.image.safetensors": 10},
    }
    for name in bundled.names():
        for file, digest in bundled.card(name)["sha256"].items():
            data = ASSETS.joinpath(file).read_bytes()
            assert len(data) <= limits[file] * 2**20
            assert hashlib.sha256(data).hexdigest() == digest


def test_it_is_an_ordinary_open_clip_model(bundled_clip):
    assert type(bundled_clip.model) is open_clip.CLIP
    facts = bundled_clip.describe()
    assert (facts.image_layers, facts.image_width) == (6, 192)
    assert facts.text_layers >= 4
    assert facts.causal
    assert facts.context_length == 77
    assert bundled_clip.model.vocab_size == 49408


@pytest.mark.parametrize("name", ["tiny-shapes", "tiny-photos"])
def test_robust_shares_all_but_the_image_tower(name):
    plain, robust = (load_clip(n).model.state_dict() for n in (name, f"{name}-robust"))
    differ = {k for k in plain if not torch.equal(plain[k], robust[k])}
    assert differ
    assert all(k.startswith("visual.") for k in differ)


@pytest.mark.slow
def test_plain_model_knows_its_world_and_half_knows_the_others(bundled_clip):
    shapes = load_data("shapes")
    assert accuracy(zero_shot(bundled_clip, shapes), own_world(200), 200) >= 0.9
    for name in ("shapes", "patterns", "counts"):
        data = load_data(name)
        assert 0.40 <= accuracy(zero_shot(bundled_clip, data), data.test, 200) <= 0.85


@pytest.mark.slow
def test_plain_model_is_not_robust(bundled_clip):
    for name in ("shapes", "patterns", "counts"):
        data = load_data(name)
        attack = PGD(zero_shot(bundled_clip, data), "4/255", "1/255", 20)
        result = attack.run(data.test.images[:25].float() / 255, data.test.labels[:25])
        assert result.trusted
        assert 1 - result.success.float().mean() < 0.10


@pytest.mark.slow
def test_robust_model_is_robust_at_one_of_the_radii():
    cards = bundled.card("tiny-shapes-robust")["zero-shot accuracy"]
    radii = [
        e for e in ("1/255", "2/255", "4/255") if 0.15 <= cards["shapes"][f"pgd-20 at {e}"] <= 0.5
    ]
    assert radii
    data = load_data("shapes")
    clip = load_clip("tiny-shapes-robust")
    attack = PGD(zero_shot(clip, data), radii[0], parse_fraction(radii[0], "eps") / 4, 20)
    result = attack.run(data.test.images[:60].float() / 255, data.test.labels[:60])
    assert result.trusted
    assert 0.15 <= 1 - result.success.float().mean() <= 0.5


@pytest.mark.parametrize("name", ["tiny-shapes", "tiny-shapes-robust"])
def test_card_holds_what_made_the_model(name):
    card = json.loads(ASSETS.joinpath(f"{name}.json").read_text())
    assert all("pretrain_shapes" in command for command in card["training"])
    assert "--seed" in card["training"][0]
    assert set(card["zero-shot accuracy"]) >= {"pre-training world", "shapes", "patterns", "counts"}


# ---- the models of photographs -----------------------------------------------------------------

PHOTOS = ("tiny-photos", "tiny-photos-robust")


def figures(name, place):
    return bundled.card(name)["zero-shot accuracy"][place]


def test_the_models_of_photographs_reach_what_they_are_for():
    plain, robust = ({p: figures(n, p) for p in ("photos64", "caltech101")} for n in PHOTOS)
    assert plain["photos64"]["clean"] >= 0.45
    assert 0.25 <= plain["caltech101"]["clean"] <= 0.60
    assert robust["caltech101"]["clean"] >= 0.6 * plain["caltech101"]["clean"]
    assert robust["caltech101"]["pgd-100 at 1/255"] >= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTOS)
def test_their_accuracy_on_the_photographs_of_the_package_is_that_of_the_card(name):
    data = load_data("photos", shots=1)
    pictures, labels = zip(*data.test, strict=True)
    test = ImageTensors(torch.stack(pictures), torch.tensor(labels))
    found = accuracy(zero_shot(load_clip(name), data), test, len(labels))
    assert found == pytest.approx(figures(name, "photos")["clean"], abs=0.003)


@pytest.mark.parametrize("name", PHOTOS)
def test_their_cards_say_what_they_have_seen_and_the_license(name):
    card = bundled.card(name)
    assert "research" in card["license"]
    assert "were not seen" in card["seen"][0]
    assert all("pretrain_photos" in command for command in card["training"])
    notice = ASSETS.joinpath("tiny-photos.LICENSE.txt").read_text("utf-8")
    assert notice.strip() == card["license"]
    logs = json.loads((ROOT / "pretraining" / "photos_logs.json").read_text("utf-8"))
    stage = logs["robust" if name.endswith("robust") else "plain"]
    assert stage["log"][-1]["caltech101"] > 0
    settings = {k: v for k, v in stage["settings"].items() if k != "stage" and v is not None}
    words = card["training"][-1].split()
    assert words[4:] == [part for k, v in settings.items() for part in (f"--{k}", repr(v))]
