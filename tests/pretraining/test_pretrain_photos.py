"""The pre-training of the photographs' models: a few steps, stopped and continued."""

import pytest
import torch

from pretraining import photo_model, pretrain_photos
from pretraining.photo_data import Photos, Pictures


def pictures(n, classes):
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(256, (n, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return Pictures(pixels, torch.arange(n) % classes)


@pytest.fixture
def _small(monkeypatch):
    photos = Photos(*(pictures(n, c) for n, c in ((30, 64), (20, 159), (10, 64), (10, 100))))
    monkeypatch.setattr(pretrain_photos, "read_photos", lambda _: photos)
    monkeypatch.setattr(pretrain_photos.torch, "set_num_threads", lambda _: None)
    vision = photo_model.CONFIG["vision_cfg"] | {"width": 64, "layers": 1}
    monkeypatch.setitem(photo_model.CONFIG, "vision_cfg", vision)


def run(stage, out, minutes=100.0):
    pretrain_photos.main(stage, out, epochs=3, batch=12, minutes=minutes)
    return (out / f"{stage}.safetensors").exists()


@pytest.mark.usefixtures("_small")
def test_a_stage_stopped_after_each_step_ends_like_one_run(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for stage in ("plain", "robust"):
        assert run(stage, whole)
        runs = 1
        while not run(stage, parts, minutes=0):
            runs += 1
        assert runs == 9  # of one step each
        one, other = (pretrain_photos.load_stage(p, stage).state_dict() for p in (whole, parts))
        assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.usefixtures("_small")
def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run("plain", tmp_path, minutes=0)
    with pytest.raises(ValueError, match="use these settings, or another folder"):
        pretrain_photos.main("plain", tmp_path, epochs=4, batch=12)
