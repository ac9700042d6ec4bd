"""Who holds the frozen model: once in a state dict, never in training mode, whole in copies."""

import copy
import pickle

import open_clip
import pytest
import torch
from helpers.models import SMALL, small_model
from torch import nn

from fastprompt import (
    DeepPrompts,
    PromptedCLIP,
    TextContext,
    evaluate,
    load_clip,
    load_data,
)
from fastprompt.attacks import FeaturePGD

NAMES = ["cat", "dog", "red fish"]


def resnet() -> open_clip.CLIP:
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}
    torch.manual_seed(0)
    return open_clip.CLIP(**config).eval()


def pixels(n: int = 2, size: int = 48) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def deep(clip, **options) -> PromptedCLIP:
    prompts = DeepPrompts.for_clip(clip, 2, refiners=True)
    shake(prompts)
    return PromptedCLIP(clip, NAMES, prompts, **options)


@torch.no_grad()
def shake(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p += 0.2 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("build", [small_model, resnet])
def test_training_mode_does_not_reach_the_frozen_model(build, engine):
    clip = load_clip(build())
    x = pixels(3, clip.image_size)
    for model in (
        clip.zero_shot(NAMES, engine=engine),
        PromptedCLIP(clip, NAMES, TextContext(2, 24), engine=engine),
    ):
        print_before, before = clip.fingerprint, model(x)
        model.train()
        assert torch.equal(model(x), before)
        assert not any(m.training for m in clip.modules())
        clip._digest = None
        assert clip.fingerprint == print_before


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_model_stands_once_in_a_state_dict(engine):
    clip = load_clip(small_model())
    for model in (clip.zero_shot(NAMES, engine=engine), deep(clip, engine=engine)):
        own = [k for k in model.state_dict() if k.endswith("visual.conv1.weight")]
        assert own == ["clip.model.visual.conv1.weight"]
    learned = [k for k in deep(clip, engine=engine).state_dict() if "refiners" in k]
    assert learned
    assert all(k.startswith("prompts.") for k in learned)


def test_a_classifier_takes_anothers_weights():
    first, second = (load_clip(small_model(seed=s)).zero_shot(NAMES) for s in (0, 1))
    x = pixels()
    assert not torch.allclose(first(x), second(x), atol=1e-2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert first.clip.fingerprint == second.clip.fingerprint


def test_copies_are_whole():
    model = deep(load_clip(small_model()))
    x = pixels()
    before = model(x)
    for twin in (copy.deepcopy(model), copy.deepcopy(model.classifier())):
        assert torch.equal(twin(x), before)
        shake(twin.refiners)
        assert not torch.allclose(twin(x), before, atol=1e-3)
        assert torch.equal(model(x), before)


@pytest.mark.slow
def test_a_compiled_model_is_copied_and_pickled(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: real(f, backend="eager", **o))
    torch._dynamo.reset()
    model = deep(load_clip(small_model()), compile=True)
    x = pixels()
    before = model(x)
    assert model._functions
    twin = copy.deepcopy(model)
    shake(twin.refiners)
    assert not torch.allclose(twin.image_features(x), model.image_features(x), atol=1e-3)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), before)
    assert torch.equal(model(x), before)
    torch._dynamo.reset()


def test_an_image_tower_of_another_kind_runs_uncompiled(monkeypatch, caplog):
    real = torch.compile
    compiled: list[str] = []

    def spy(function, **options):
        compiled.append(function.__name__)
        return real(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", spy)
    torch._dynamo.reset()
    clip = load_clip(resnet())
    prompts, x = TextContext(2, 24), pixels(2, 64)
    logits = PromptedCLIP(clip, NAMES, prompts, compile=True)(x)
    torch.testing.assert_close(logits, PromptedCLIP(clip, NAMES, prompts)(x))
    assert compiled == ["_text_features"]
    assert "PlainImageTower" in caplog.text
    torch._dynamo.reset()


def test_a_blind_attack_sees_no_learned_visual_prompt(monkeypatch):
    clip, data = load_clip(small_model()), load_data("patterns", shots=1)
    prompts = DeepPrompts.for_clip(clip, 2, refiners=True)
    tuned = PromptedCLIP(clip, data.classnames, prompts).classifier()
    attacked = []
    real = FeaturePGD.__init__
    monkeypatch.setattr(
        FeaturePGD,
        "__init__",
        lambda self, encode, *a, **k: attacked.append(encode) or real(self, encode, *a, **k),
    )
    # some images that are right clean must be among them: others are not attacked
    options = {"limit": 24, "progress": False, "eps": "4/255", "sanity": "off"}
    evaluate({"tuned": tuned}, data.test, ["feature-pgd-1"], **options)
    evaluate({"plain": clip.zero_shot(data.classnames)}, data.test, ["feature-pgd-1"], **options)
    blind, plain = attacked
    x = pixels()
    assert torch.equal(blind(x), clip.encode_image(x))
    torch.testing.assert_close(plain(x), blind(x))


def test_rows_say_how_the_judge_computes():
    clip, data = load_clip(small_model()), load_data("patterns", shots=1)
    models = {
        "own": clip.zero_shot(data.classnames),
        "low": clip.zero_shot(data.classnames, precision="bf16"),
        "plain": clip.zero_shot(data.classnames, engine="reference"),
        "foreign": nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 6)),
    }
    rows = evaluate(models, data.test, ["clean"], limit=2, progress=False).rows
    assert [(r.get("engine"), r.get("precision")) for r in rows] == [
        ("fast", "fp32"),
        ("fast", "bf16"),
        ("reference", "fp32"),
        (None, None),
    ]
