"""Batches of a tuner: padded to one size where each size would be compiled or captured."""

from collections import defaultdict
from typing import get_args

import pytest
import torch
from helpers.method_checks import EXACT, SETTINGS, gradients, order, relative, tuner_of

from fastprompt.model import prompted
from fastprompt.model.padding import cut, padded, padded_labels
from fastprompt.tuning.attack_loss import AttackLoss

ONLINE = sorted(set(SETTINGS) - {"advpt"})


@pytest.fixture
def sizes(monkeypatch):
    """Stands in for the compiler: the batches that each function gets; of the text, gradients."""
    seen = defaultdict(set)

    def recorded(function):
        def run(owner, *given):
            if function.__name__ == "one_block":
                seen["one_block"].add(len(given[0]))
            else:
                seen[function.__name__].add((torch.is_grad_enabled(), given[0].requires_grad))
            return function(owner, *given)

        return run

    monkeypatch.setattr(prompted, "compiled", recorded)
    return seen


def steps(tuner, epoch: int):
    """Images, loss and gradients of each batch of an epoch."""
    for _, step in tuner.batches(order(), epoch):
        loss = tuner.loss(step)
        grads = gradients(tuner.prompts, loss) if len(step.rows) else {}
        yield [step.adv, loss, *grads.values()]


@pytest.mark.parametrize("method", ONLINE)
def test_padding_changes_nothing_and_leaves_one_size(method, sizes):
    plain, whole = (tuner_of(method, batch=4, augment=False) for _ in range(2))
    whole.model.compiled = True  # nine images: the last batch has one
    batches = list(zip(steps(plain, 2), steps(whole, 2), strict=True))
    assert [len(mine[0]) for _, mine in batches] == [4, 4, 1]
    for theirs, mine in batches:
        for a, b in zip(mine, theirs, strict=True):
            assert relative(a, b) <= EXACT
    assert 4 in sizes["one_block"] <= {4, 8}  # images, or clean and adversarial ones
    assert len(sizes["_text_features"]) == 1


@pytest.mark.parametrize("name", [name for name in get_args(AttackLoss) if name != "ce"])
def test_other_losses_of_the_attack_are_padded_too(name, sizes):
    plain, whole = (tuner_of("apt", batch=4, attack_loss=name) for _ in range(2))
    whole.model.compiled = True
    for theirs, mine in zip(steps(plain, 1), steps(whole, 1), strict=True):
        assert relative(mine[0], theirs[0]) <= EXACT
    assert sizes["one_block"] == {4}


def test_validation_compiles_no_text_and_no_attack_of_its_own(sizes):
    tuner = tuner_of("nap", batch=4)
    plain = tuner_of("nap", batch=4)
    for each in (tuner, plain):
        each._pictures["val"] = each._pictures["train"]
    tuner.model.compiled = True
    list(steps(tuner, 2))
    assert tuner.validate() == plain.validate()
    assert sizes["_text_features"] == {(True, True)}
    assert sizes["one_block"] == {4, 8}


def test_radii_are_padded_too(sizes):
    plain, whole = (tuner_of("apt", batch=4, eps_min="1/255") for _ in range(2))
    whole.model.compiled = True
    for theirs, mine in zip(steps(plain, 1), steps(whole, 1), strict=True):
        assert relative(mine[0], theirs[0]) <= EXACT


def test_without_compiled_code_nothing_is_padded(monkeypatch):
    tuner = tuner_of("nap", batch=4)
    seen, real = [], tuner.model.image.forward

    def spy(images, *args, **options):
        seen.append(len(images))
        return real(images, *args, **options)

    monkeypatch.setattr(tuner.model.image, "forward", spy)
    list(steps(tuner, 2))
    assert set(seen) == {4, 8, 1, 2}


def test_a_few_training_images_are_not_padded_to_the_batch_size():
    assert tuner_of("apt", n=3, batch=64).model.batch == 3
    assert tuner_of("apt", batch=4).model.batch == 4


def test_rows_are_appended_and_cut():
    x, y = torch.rand(2, 3), torch.tensor([1, 0])
    assert torch.equal(padded(x, 4), torch.cat([x, x[1:], x[1:]]))
    assert padded_labels(y, 4).tolist() == [1, 0, -100, -100]
    assert cut(padded(x, 4), 2).tolist() == x.tolist()
    for size in (None, 1, 2):
        assert padded(x, size) is x
        assert padded_labels(y, size) is y
    assert padded(x[:0], 4).shape == (0, 3)
    assert padded_labels(y[:0], 4).shape == (0,)
    assert cut(x, 2) is x
