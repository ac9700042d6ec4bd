"""FAB and Square beside torchattacks at equal budgets: as many images stand, within one."""

import pytest
import torch
from helpers.attack_toys import fooled

from fastprompt import load_clip, load_data
from fastprompt.attacks import FAB, Square

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.timeout(1800)]

FAB_STEPS, TARGETS, QUERIES = 20, 9, 100


@pytest.fixture(scope="module")
def case():
    data = load_data("shapes", shots=1)
    model = load_clip("tiny-shapes-robust").zero_shot(data.classnames, data.templates)
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:100]
    x, y = data.test.images[order].float() / 255, data.test.labels[order]
    right = ~standing_off(model, x, y)
    return model, x[right], y[right]


@torch.no_grad()
def standing_off(model, x, y):
    return fooled(model, x, y)


def standing(model, attack, x, y, eps):
    adv = attack(x, y)
    assert ((adv - x).abs() <= eps + 1e-6).all()
    return int((~standing_off(model, adv, y)).sum())


@pytest.mark.parametrize(("eps", "images"), [(2 / 255, 15), (4 / 255, 100)], ids=["2/255", "4/255"])
def test_fab(torchattacks, case, eps, images):
    """Fewer images at 2/255: one that stands costs all steps against all targets."""
    model, x, y = case
    x, y = x[:images], y[:images]
    theirs = torchattacks.FAB(
        model, norm="Linf", eps=eps, steps=FAB_STEPS, multi_targeted=True, n_classes=TARGETS + 1
    )
    ours = FAB(model, eps, FAB_STEPS, targets=TARGETS, batch=90)
    left = [standing(model, attack, x, y, eps) for attack in (ours, theirs)]
    assert abs(left[0] - left[1]) <= 1
    assert left[0] < len(x)


def test_square(torchattacks, case):
    """Three seeds: the squares are random, and a seed's survivors scatter by about two images."""
    model, x, y = case
    eps = 4 / 255  # at 2/255 nearly all images stand, which takes long
    left = [
        [
            standing(model, attack, x, y, eps)
            for attack in (
                Square(model, eps, QUERIES, seed=seed),
                torchattacks.Square(
                    model, norm="Linf", eps=eps, n_queries=QUERIES, seed=seed, resc_schedule=False
                ),
            )
        ]
        for seed in range(3)
    ]
    more = torch.tensor([ours - theirs for ours, theirs in left], dtype=torch.float64)
    error = more.std() / len(more) ** 0.5
    assert more.mean() <= 1 + error
    assert max(ours for ours, _ in left) < len(x)
