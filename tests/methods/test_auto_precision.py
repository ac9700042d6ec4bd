"""``precision="auto"`` on a CPU that multiplies bfloat16: what runs in it, and what does not."""

import pytest
import torch

from fastprompt import FrozenCLIP
from fastprompt.data import ImageTensors
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning import optimizers

NAMES = ["cat", "dog", "fox"]
SETTINGS = {"epochs": 1, "batch": 4, "n_ctx": 2, "warmup_epochs": 0}


@pytest.fixture
def data(images: torch.Tensor) -> ImageTensors:
    return ImageTensors((images * 255).to(torch.uint8), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("method", TUNERS)
def test_one_step_of_each_method(
    method: str, small_clip: FrozenCLIP, data: ImageTensors, images, bf16_units, monkeypatch
) -> None:
    made, losses = [], []
    real = optimizers.make_optimizer
    monkeypatch.setattr(
        optimizers, "make_optimizer", lambda *args: made.append(real(*args)) or made[-1]
    )
    tuner = TUNERS[method](small_clip, NAMES, SETTINGS, steps=1)
    loss = tuner.loss
    monkeypatch.setattr(tuner, "loss", lambda b: losses.append((b, loss(b))) or losses[-1][1])
    before = {k: v.clone() for k, v in tuner.prompts.state_dict().items()}
    tuner.fit(data, progress=False)
    model = tuner.model
    assert (tuner.config.precision, model.precision) == ("bf16", "bf16")

    # the towers
    assert model.image.dtype == torch.bfloat16
    text = torch.float32 if method == "ampt" else torch.bfloat16
    assert model.text.parts.dtype == text  # a router depends on small differences
    assert model.image.patch_weight.dtype == torch.float32  # rounding would cancel attack steps
    assert small_clip.dtype == torch.float32

    # all the rest
    ((batch, value),) = losses
    assert value.dtype == torch.float32
    assert value.isfinite()
    attacked = tuner._banks["train"][0] if method == "advpt" else batch.adv
    assert attacked.dtype == torch.float32
    assert model.image_features(images).dtype == model.class_features().dtype == torch.float32
    assert model(images).dtype == tuner.classifier(images).dtype == torch.float32
    after = tuner.prompts.state_dict()
    assert {v.dtype for v in after.values() if v.is_floating_point()} == {torch.float32}
    assert any(not torch.equal(v, before[k]) for k, v in after.items())
    state = [v for s in made[0].state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert state
    assert {v.dtype for v in state} == {torch.float32}


@pytest.mark.parametrize("method", TUNERS)
def test_a_plain_cpu_gives_the_bits_of_float32(
    method: str, small_clip: FrozenCLIP, data: ImageTensors
) -> None:
    tuned = [
        TUNERS[method](small_clip, NAMES, SETTINGS, **given).fit(data, progress=False).prompts
        for given in ({}, {"precision": "fp32"})
    ]
    for (name, auto), full in zip(
        tuned[0].state_dict().items(), tuned[1].state_dict().values(), strict=True
    ):
        assert torch.equal(auto, full), name
