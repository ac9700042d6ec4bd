"""The losses of the attack in a tuning step: their formulas, their draws, their attack."""

import math
from typing import get_args

import pytest
import torch
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt._utils.seeds import stream
from fastprompt.attacks.random_start import random_start
from fastprompt.kernels.random_start.reference import uniform
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.tuning import online_pgd
from fastprompt.tuning.attack_loss import MIXED, AttackLoss, attack_losses, goal_of
from fastprompt.tuning.online_pgd import OnlinePGD

NAMES = ["cat", "very small dog", "red circle", "fish", "bird", "tall tree"]
EPS, ALPHA, SEED, DRAW = 4 / 255, 1.5 / 255, 7, 2
LOSSES = get_args(AttackLoss)
OTHERS = pytest.mark.parametrize("name", [loss for loss in LOSSES if loss != "ce"])
ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


@pytest.fixture(scope="module")
def double():
    return load_clip(small_model().double())


def prompted(clip, engine: str = "fast", names=NAMES, **options) -> PromptedCLIP:
    """Prompts and refiners, none at its start value."""
    prompts = DeepPrompts(2, 3, 24, 32, refiners=1, seed=2).to(clip.dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in prompts.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return PromptedCLIP(clip, names, prompts, engine=engine, **options)


def batch(n: int = 6, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, 3, 48, 48, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(n) % len(NAMES), torch.arange(n) + 10


# ---- formulas, slowly ------------------------------------------------------------------------


def drawn(index: int, count: int, seed: int, draw: int) -> tuple[int, int]:
    """Rank of the target and position of the loss, from the plain random numbers."""
    rank, kind = uniform(index, 2, stream(seed, "attack loss", 0), draw)
    return int(rank * count), int(kind * 4)


def slow_loss(name: str, z: torch.Tensor, y: int, clean: torch.Tensor, rank: int, kind: int):
    """The loss of one image from its logits ``[C]``."""
    classes = range(len(z))
    log_p = z - z.exp().sum().log()
    best = max((c for c in classes if c != y), key=lambda c: z[c].item())
    ranked = sorted(classes, key=lambda c: -z[c].item())
    first, third, fourth = (z[ranked[i]] for i in (0, 2, 3))
    target = sorted((c for c in classes if c != y), key=lambda c: -float(clean[c]))[rank]
    if name == "ce":
        return -log_p[y]
    if name == "margin":
        return z[best] - z[y]
    if name == "dlr" and ranked[2] == y:  # the quotient is 1
        return z[best] - z[y]
    if name == "dlr":
        return -(z[y] - z[best]) / (first - third + 1e-12)
    if name == "targeted-dlr":
        return -(z[y] - z[target]) / (first - (third + fourth) / 2 + 1e-12)
    if name == "kl":
        p = clean.exp() / clean.exp().sum()
        return sum(p[c] * (p[c].log() - log_p[c]) for c in classes)
    return slow_loss(["ce", "margin", "dlr", "targeted-dlr"][kind], z, y, clean, rank, kind)


def slow_losses(name: str, logits, labels, indices, clean, seed=SEED, draw=DRAW):
    rows = zip(logits, labels.tolist(), indices.tolist(), clean, strict=True)
    count = min(9, logits.shape[1] - 1)
    return torch.stack(
        [slow_loss(name, z, y, before, *drawn(i, count, seed, draw)) for z, y, i, before in rows]
    )


@pytest.mark.parametrize("classes", [4, 6, 12])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_their_formulas(name, classes):
    generator = torch.Generator().manual_seed(1)
    n = 30
    logits, clean = (torch.randn(n, classes, generator=generator).double() * 3 for _ in range(2))
    labels, indices = torch.arange(n) % classes, torch.arange(n) * 5
    logits.requires_grad_()
    goal = goal_of(name, labels, indices, clean, seed=SEED, draw=DRAW)
    ours = attack_losses(name, logits, goal)
    wanted = slow_losses(name, logits, labels, indices, clean)
    assert ours.shape == (n,)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    both = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-12)
    assert (both[0].norm(dim=1) > 1e-6).all()


def plain_attack(name: str, classifier, x, y, indices, start, steps: int) -> torch.Tensor:
    """PGD written out, on the slow losses."""
    with torch.no_grad():
        clean = classifier(x)
    adv = start
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        loss = slow_losses(name, classifier(adv), y, indices, clean).sum()
        (grad,) = torch.autograd.grad(loss, adv)
        moved = adv.detach() + ALPHA * grad.sign()
        adv = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
    return adv


@ENGINES
@pytest.mark.parametrize("name", LOSSES)
def test_the_attack_is_pgd_on_its_loss(double, name, engine):
    """On both engines the images of the slow loop on the classifier."""
    model, (x, y, indices) = prompted(double, engine), batch()
    ours = OnlinePGD(model, EPS, ALPHA, 2, attack_loss=name, seed=SEED)(x, y, indices, draw=DRAW)
    start = random_start(x, EPS, indices, seed=SEED, restart=DRAW, sides="two-sided")
    wanted = plain_attack(name, model.classifier(), x, y, indices, start, 2)
    assert torch.equal(ours.images, wanted)
    assert ours.trusted
    if name != "ce":
        plain = OnlinePGD(model, EPS, ALPHA, 2, seed=SEED)(x, y, indices, draw=DRAW).images
        assert (plain != ours.images).double().mean() > 1e-3


def test_the_default_is_the_models_own_fused_loss(double):
    """The functions that are compiled and captured are those of the cross-entropy."""
    model = prompted(double)
    assert OnlinePGD(model)._ascent.loss_of == model.attack_loss
    x, y, indices = batch()
    images = [
        OnlinePGD(model, EPS, ALPHA, 2, **options)(x, y, indices).images
        for options in ({}, {"attack_loss": "ce"})
    ]
    assert torch.equal(*images)


@OTHERS
def test_prepared_prompts_are_shared_and_left_alone(double, name):
    model, (x, y, indices) = prompted(double), batch()
    prepared, encoded = model.prepare(), []
    handle = model.text.register_forward_hook(lambda *_: encoded.append(1))
    attack = OnlinePGD(model, EPS, ALPHA, 2, attack_loss=name)
    images = attack(x, y, indices, prepared).images
    handle.remove()
    assert not encoded
    assert torch.equal(attack(x, y, indices).images, images)
    assert prepared.text.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.prompts.parameters())


@ENGINES
@OTHERS
def test_an_empty_batch_comes_back_empty(double, name, engine):
    x, y, indices = (t[:0] for t in batch())
    attack = OnlinePGD(prompted(double, engine), EPS, ALPHA, 2, attack_loss=name)
    assert attack(x, y, indices).images.shape == (0, 3, 48, 48)


@pytest.mark.parametrize("name", LOSSES)
def test_towers_in_a_low_precision_give_float32_losses(name, monkeypatch):
    seen = []

    def spy(kind, logits, goal):
        out = attack_losses(kind, logits, goal)
        seen.append((logits, out, goal.clean))
        return out

    monkeypatch.setattr(online_pgd, "attack_losses", spy)
    model = prompted(load_clip(small_model()), precision="bf16")
    x, y, indices = batch(dtype=torch.float32)
    adv = OnlinePGD(model, EPS, ALPHA, 1, attack_loss=name)(x, y, indices).images
    assert adv.dtype == torch.float32
    assert len(seen) == (name != "ce")
    for tensor in (t for row in seen for t in row if t is not None):
        assert tensor.dtype == torch.float32


# ---- draws -----------------------------------------------------------------------------------


def goals(n: int = 4000, seed: int = 0, draw: int = 0, classes: int = 20):
    """Targets as ranks: each image's logits fall with the class, and class 0 is the true one."""
    clean = -torch.arange(classes).expand(n, classes).float()
    labels = torch.zeros(n, dtype=torch.int64)
    return goal_of("mixed", labels, torch.arange(n), clean, seed=seed, draw=draw)


@ENGINES
@pytest.mark.parametrize("name", ["targeted-dlr", "mixed"])
def test_splitting_a_batch_changes_no_image(double, name, engine):
    model, (x, y, indices) = prompted(double, engine), batch()
    attack = OnlinePGD(model, EPS, ALPHA, 2, attack_loss=name, seed=1)
    whole = attack(x, y, indices, draw=1).images
    for rows in ([0], [1, 2], [5, 4, 3]):
        part = attack(x[rows], y[rows], indices[rows], draw=1).images
        assert torch.equal(part, whole[rows])


def test_draws_depend_on_seed_draw_and_image_and_are_uniform():
    found = goals()
    again = goals(10)
    assert torch.equal(found.targets[:10], again.targets)
    assert torch.equal(found.kinds[:10], again.kinds)
    for which, count in (("targets", 9), ("kinds", len(MIXED))):
        ours = getattr(found, which)
        shares = torch.bincount(ours, minlength=10).float() / len(ours)
        shares = shares[1:] if which == "targets" else shares[:count]  # of the strongest nine
        assert shares.sum() == pytest.approx(1)
        assert (shares - 1 / count).abs().max() < 4 * math.sqrt(1 / count / len(ours))
        others = [
            getattr(goals(**k), which) for k in ({"seed": 1}, {"draw": 1}, {"seed": 2**32 - 1})
        ]
        for other in (*others, found.kinds if which == "targets" else found.targets):
            assert abs(torch.corrcoef(torch.stack([ours, other]).float())[0, 1]) < 0.06


def test_draws_are_others_than_the_starts():
    start = random_start(
        torch.zeros(4000, 2), 1.0, torch.arange(4000), seed=0, sides="one-sided", clamp=False
    )
    kinds = goals().kinds.float()
    for column in start.T:
        assert abs(torch.corrcoef(torch.stack([column, kinds]))[0, 1]) < 0.06


def test_four_classes_have_three_targets():
    assert set(goals(100, classes=4).targets.tolist()) == {1, 2, 3}


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("margin", 1, r"at least 2 classes with 'margin', got 1: use 'ce'$"),
        ("kl", 1, r"at least 2 classes with 'kl', got 1: use 'ce'$"),
        ("dlr", 2, r"at least 3 classes with 'dlr', got 2: use 'ce' or 'margin' or 'kl'$"),
        ("targeted-dlr", 3, r"at least 4 .*, got 3: use 'ce' or 'margin' or 'kl' or 'dlr'$"),
        ("mixed", 3, r"at least 4 classes with 'mixed', got 3: use"),
    ],
)
def test_too_few_classes_are_refused(double, name, classes, message):
    model = prompted(double, names=NAMES[:classes])
    with pytest.raises(ValueError, match=rf"^attack_loss needs {message}"):
        OnlinePGD(model, attack_loss=name)
    more = prompted(double, names=NAMES[: classes + 1])
    x, y, indices = batch(2)
    result = OnlinePGD(more, EPS, ALPHA, 1, attack_loss=name)(x, y % (classes + 1), indices)
    assert result.trusted


def test_an_attack_without_a_gradient_at_its_start_is_refused(double):
    with pytest.raises(ValueError, match=r"^attack_loss needs random_start=True with 'kl'"):
        OnlinePGD(prompted(double), attack_loss="kl", random_start=False)
    with pytest.raises(ValueError, match=r"^attack_loss .*'ce'.*'mixed'.*'logit'"):
        OnlinePGD(prompted(double), attack_loss="logit")
