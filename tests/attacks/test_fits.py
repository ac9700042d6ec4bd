"""A tuned classifier in other people's libraries: a model of [0, 1] images to logits."""

import importlib

import pytest
import torch

from fastprompt import APTTuner, load_data


@pytest.fixture(scope="module")
def case(bundled_clip):
    data = load_data("patterns", shots=1)
    tuner = APTTuner(bundled_clip, data.classnames, n_ctx=2)
    images, labels = data.test.images[:12].float() / 255, data.test.labels[:12]
    return tuner.classifier, images, labels


ATTACKS = {
    "FGSM": {"eps": 2 / 255},
    "PGD": {"eps": 2 / 255, "alpha": 1 / 255, "steps": 3},
    "MIFGSM": {"eps": 2 / 255, "alpha": 1 / 255, "steps": 3},
    "CW": {"steps": 3},
    "APGD": {"eps": 2 / 255, "steps": 3},
    "APGDT": {"eps": 2 / 255, "steps": 3, "n_classes": 3},
    "FAB": {"eps": 2 / 255, "steps": 2, "n_classes": 3, "multi_targeted": True},
    "Square": {"eps": 2 / 255, "n_queries": 5},
}


@pytest.mark.peers
@pytest.mark.parametrize("name", ATTACKS)
def test_torchattacks(torchattacks, case, name):
    classifier, images, labels = case
    adv = getattr(torchattacks, name)(classifier, **ATTACKS[name])(images, labels)
    assert adv.shape == images.shape
    assert adv.isfinite().all()
    if name != "CW":
        assert ((adv - images).abs() <= 2 / 255 + 1e-6).all()
    assert all(p.grad is None for p in classifier.parameters())


def test_autoattack_and_robustbench_call_forms(case):
    """They take ``forward_pass`` or a module in eval mode on a device, and call it on [0, 1]."""
    classifier, images, labels = case
    device = next(classifier.parameters()).device
    model = classifier.eval().to(device)
    with torch.no_grad():
        correct = (model(images.to(device)).max(dim=1)[1] == labels).float().mean()
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none").sum()
    grad = torch.autograd.grad(loss, [images])[0].detach()
    assert 0 <= correct <= 1
    assert grad.abs().sum() > 0


def test_autoattack_as_robustbench_calls_it(case):
    # in no extra: its wheel brings a top-level package ``tests``
    pyautoattack = pytest.importorskip("pyautoattack", reason="pip install pyautoattack")
    classifier, images, labels = case
    attack = pyautoattack.AutoAttack(
        classifier.eval(), norm="Linf", eps=2 / 255, version="custom", attacks=["apgd-ce"], seed=0
    )
    found = attack.run_standard_evaluation(images, labels, batch_size=12)
    adv = found[0] if isinstance(found, tuple) else found
    assert ((adv - images).abs() <= 2 / 255 + 1e-6).all()
    with torch.no_grad():
        before, after = (int((classifier(x).argmax(1) == labels).sum()) for x in (images, adv))
    assert after < before


@pytest.mark.peers
def test_foolbox(case):
    foolbox = importlib.import_module("foolbox")
    classifier, images, labels = case
    model = foolbox.PyTorchModel(classifier.eval(), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=3)
    _, clipped, success = attack(model, images, labels, epsilons=[2 / 255])
    assert success.shape == (1, 12)
    assert ((clipped[0] - images).abs() <= 2 / 255 + 1e-6).all()
