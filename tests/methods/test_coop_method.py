"""CoOp: the prompts of APT, tuned on clean images."""

import pytest
import torch
import torch.nn.functional as F

from fastprompt import APTTuner, CoOpConfig, CoOpTuner
from fastprompt.data.dataset import ImageTensors
from fastprompt.tuning.online_pgd import OnlinePGD

NAMES = ["cat", "dog", "cow"]
SETTINGS = {"epochs": 3, "batch": 4, "n_ctx": 2, "lr": 0.1, "steps": 1, "precision": "fp64"}


def data(seed=0, n=10):
    gen = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 48, 48), generator=gen, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % 3)


def test_it_is_apt_without_a_perturbation(small_clip):
    coop = CoOpTuner(small_clip, NAMES, SETTINGS).fit(data(), progress=False)
    apt = APTTuner(small_clip, NAMES, {**SETTINGS, "eps": 1e-12}).fit(data(), progress=False)
    other = APTTuner(small_clip, NAMES, {**SETTINGS, "eps": "8/255"}).fit(data(), progress=False)
    own, near, far = (t.prompts.state_dict()["tokens"] for t in (coop, apt, other))
    assert (own - near).norm() <= 1e-9 * own.norm()
    assert (own - far).norm() > 1e-6 * own.norm()


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_loss_is_the_clean_cross_entropy(small_clip, engine):
    precision = "fp64" if engine == "fast" else "fp32"  # the reference engine's is the weights'
    tuner = CoOpTuner(
        small_clip, NAMES, SETTINGS, engine=engine, augment=False, precision=precision
    )
    tuner.prepare(data(), None, None, False)
    ((_, step),) = tuner.batches(torch.arange(4), 0)
    loss = tuner.loss(step)
    images, labels = data().images[:4].float() / 255, data().labels[:4]
    plain = F.cross_entropy(tuner.classifier(images), labels)
    assert torch.allclose(loss, plain, rtol=1e-10 if engine == "fast" else 1e-5, atol=0)
    (grad,) = torch.autograd.grad(loss, [*tuner.prompts.parameters()])
    assert grad.norm() > 1e-6


def test_no_image_is_attacked(small_clip, monkeypatch):
    def attacked(*arguments, **options):
        raise AssertionError("CoOp must not attack")

    monkeypatch.setattr(OnlinePGD, "__call__", attacked)
    tuner = CoOpTuner(small_clip, NAMES, SETTINGS)
    assert tuner.fit(data(), data(1, 6), progress=False).score == "val_accuracy"
    tuner.prepare(data(), data(1, 6), None, False)
    right = tuner.classifier(data(1, 6).images.float() / 255).argmax(1) == data(1, 6).labels
    assert tuner.validate() == {"val_accuracy": pytest.approx(right.double().mean().item())}
    tuner.release()


def test_published_settings():
    config = CoOpConfig.published(epochs=50)
    assert (config.epochs, config.batch, config.optimizer, config.keep) == (50, 32, "sgd", "last")
