"""Every planted defense is falsely robust, and no evaluation of it is trusted."""

import re

import pytest
import torch
from helpers.planted_defenses import EPS, FALSE, LABELS, images, known_attack, survivors

from fastprompt import evaluate
from fastprompt.data import ImageTensors

N = 24
# the check that names the trick; where several do, one of them
REASONS = {
    "rounded": ("gradient health", "zero gradient"),
    "hot": ("gradient health", "temperature"),
    "detached": ("gradient health", "detached"),
    "under_no_grad": ("gradient health", "no_grad"),
    "nan_gradient": ("gradient health", "NaN or infinite"),
    "shuffled": ("measured gradient", "not the slope"),
    "backwards": ("gradient direction", "does not point to a higher loss"),
    "partly_turned": ("measured gradient", "not the slope"),
    "mostly_filled": ("measured gradient", "not the slope"),
    "wave_between_levels": ("measured gradient", "beside them"),
    "wave_in_the_logits": ("measured gradient", "not the slope"),
    "one_hot_and_another": ("path integral", "jumps"),
    "memory": ("path integral", "look-up"),
    "detector": ("ball", "8 bits"),
    "other_in_the_attack": ("attack path", "attacked model is not the evaluated one"),
    "other_with_gradients_on": ("attack path", "attacked model is not the evaluated one"),
    "squashed": ("another loss", "on the other loss"),
    "early": ("attacked again", "when attacked again"),
    "in_large_batches": ("attacked again", "when attacked again"),
    "declared partly_turned": ("measured gradient", "not the slope"),
    "declared gradient_of_another": ("measured gradient", "not the slope"),
    "noisy other_in_the_attack": ("attack path", "attacked model is not the evaluated one"),
    "noisy in_large_batches": ("attacked again", "when attacked again"),
    "noisy gradient_of_another": ("measured gradient", "not the slope"),
}


def evaluated(name, depth, n=N):
    torch.manual_seed(0)
    data = ImageTensors(images(n), LABELS[:n])
    # fewer passes than by default, since a tiny model needs no more
    kind = name.split()[0]
    samples = {"declared": 2, "noisy": 5, "own": 5}.get(kind)
    attack = ["pgd-10"]
    return evaluate(FALSE[name](), data, attack, EPS, samples=samples, sanity=depth, progress=False)


def assert_false(name, result, n=N):
    """An attack that knows the trick leaves at least a tenth of the images less."""
    row = result.row("model", "pgd-10", EPS)
    claimed = row["correct"] + row["stalled"]
    assert claimed - survivors(FALSE[name], n) >= n / 10


# random passes are many: of these kinds, one of each trick runs in the fast tests
OFTEN = {"declared partly_turned", "declared gradient_of_another", "noisy gradient_of_another"}
QUICK = [
    name if " " not in name or name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
    for name in FALSE
]


@pytest.mark.parametrize("name", QUICK)
def test_a_false_defense_is_not_trusted(name):
    result = evaluated(name, "quick")
    assert_false(name, result)
    assert not result.trusted
    assert result.reasons
    if name in REASONS:
        check, words = REASONS[name]
        reasons = {s["check"]: s["reason"] for s in result.sanity if s["verdict"] == "failed"}
        assert re.search(words, reasons[check])


@pytest.mark.slow
@pytest.mark.parametrize("name", FALSE)
def test_a_false_defense_is_not_trusted_in_full(name):
    result = evaluated(name, "full", 40)
    assert_false(name, result, 40)
    assert not result.trusted


def test_known_attacks_stay_in_the_ball():
    for adv in known_attack(4):
        assert ((adv - images(4) / 255).abs() <= EPS + 1e-6).all()
