"""The pre-training of the photographs' models: a few steps, stopped and continued."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fastprompt import load_clip
from fastprompt.clip import bundled
from fastprompt.data import ImageTensors
from pretraining import export_photos, photo_model, pretrain_photos
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
def test_a_stage_may_end_before_its_schedule(tmp_path):
    out = tmp_path / "early"
    pretrain_photos.main("plain", out, epochs=3, stop=2, batch=12)
    log = json.loads((out / "plain.json").read_text())["log"]
    assert [row["step"] for row in log if "of" in row] == [6]
    assert {row["of"] for row in log if "of" in row} == {9}
    for _ in range(6):
        run("plain", tmp_path / "whole", minutes=0)  # one step each
    states = [
        load_file(folder / "plain.checkpoint.safetensors") for folder in (out, tmp_path / "whole")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.usefixtures("_small")
def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run("plain", tmp_path, minutes=0)
    with pytest.raises(ValueError, match="use these settings, or another folder"):
        pretrain_photos.main("plain", tmp_path, epochs=4, batch=12)


@pytest.mark.usefixtures("_small")
def test_an_export_is_a_bundled_model_with_its_card(tmp_path, monkeypatch):
    for stage in ("plain", "robust"):
        run(stage, tmp_path / "run")
    test = ImageTensors(*vars(pictures(6, 3)).values())
    sets = {"photos64": (test, ["dog", "cat", "bird"])}
    monkeypatch.setattr(export_photos, "judged_sets", lambda data, folder: sets)
    assets, logs = tmp_path / "assets", tmp_path / "logs.json"
    export_photos.export(tmp_path / "run", assets=assets, logs=logs, images=3)

    monkeypatch.setattr(bundled, "resources", SimpleNamespace(files=lambda _: assets))
    bundled._card.cache_clear()
    assert bundled.names() == ["tiny-photos", "tiny-photos-robust"]
    clips = [load_clip(name) for name in bundled.names()]
    plain, robust = (clip.model.state_dict() for clip in clips)
    assert clips[0].image_size == 64
    differ = {k for k in plain if not torch.equal(plain[k], robust[k])}
    assert differ
    assert all(k.startswith("visual.") for k in differ)
    card = bundled.card("tiny-photos-robust")
    assert "research" in card["license"]
    assert "2,623 of the 4,128" in card["seen"][1]
    assert [line.split()[2:4] for line in card["training"]] == [
        ["pretraining.pretrain_photos", "plain"],
        ["pretraining.pretrain_photos", "robust"],
    ]
    assert set(card["zero-shot accuracy"]["photos64"]) == {"clean", "pgd-100 at 1/255"}
    assert set(json.loads(logs.read_text())) == {"plain", "robust"}
    bundled._card.cache_clear()


def test_the_model_takes_less_than_20_mb_in_float16():
    model = photo_model.make_model(patch_dropout=0.5)
    assert 2 * sum(p.numel() for p in model.parameters()) < 19.98e6
    assert model.visual.patch_dropout.prob == 0.5
