"""Methods without public code of the authors, held to cases in which another method decides."""

import pytest
import torch
import torch.nn.functional as F
from helpers.method_checks import EXACT, agree, first_step, reference_of, relative, tuner_of

ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


@ENGINES
@pytest.mark.parametrize("n_prompts", [1, 3])
def test_a_mixture_of_equal_prompts_is_apt(n_prompts, engine):
    """Whatever the router says: it is perturbed."""
    apt, ampt = tuner_of("apt", engine), tuner_of("ampt", engine, n_prompts=n_prompts)
    with torch.no_grad():
        ampt.prompts.tokens.copy_(apt.prompts.tokens)
    steps = [first_step(tuner) for tuner in (apt, ampt)]
    assert relative(steps[1].adv, steps[0].adv) <= EXACT
    losses = [tuner.loss(step) for tuner, step in zip((apt, ampt), steps, strict=True)]
    assert relative(losses[1], losses[0]) <= EXACT
    wanted, found = (
        torch.autograd.grad(loss, tuner.prompts.tokens)[0]
        for loss, tuner in zip(losses, (apt, ampt), strict=True)
    )
    assert relative(found.sum(dim=0), wanted) <= EXACT  # each prompt has its weight's share


@ENGINES
def test_capt_without_consistency_is_adversarial_tuning_of_deep_prompts(engine):
    tuner = tuner_of("capt", engine, lam=0, ce="adv")
    step = first_step(tuner)
    plain = F.cross_entropy(reference_of(tuner)(step.adv), step.labels)
    agree(tuner.prompts, tuner.loss(step), plain)


@ENGINES
def test_capt_without_its_guide_is_faps_loss_without_its_cosine_factor(engine):
    """``CE(clean) + lam KL(clean || adv)``, not detached: trainers/fap.py of lionel-w2/FAP."""
    options = {"balance": "constant", "balance_value": 0.0, "detach_targets": False, "lam": 1.5}
    tuner = tuner_of("capt", engine, ce="clean", train_kl="target||adv", **options)
    step = first_step(tuner)
    model = reference_of(tuner)
    clean, adv = model(step.images), model(step.adv)
    divergence = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")
    wanted = F.cross_entropy(clean, step.labels) + 1.5 * divergence
    agree(tuner.prompts, tuner.loss(step), wanted)
