"""The TRADES objective of each method, with any loss of the attack; runs that use them."""

import pytest
import torch
from helpers.method_checks import (
    NAMES,
    SETTINGS,
    agree,
    clip_of,
    cross_entropy,
    data,
    first_step,
    log_probabilities,
    logits_of,
    reference_of,
    tuner_of,
)

from fastprompt import AMPTConfig, APTConfig, APTTuner, CAPTConfig, CoOpConfig, NAPConfig
from fastprompt._utils.run_folder import RunFolder
from fastprompt.cli.tune_parser import tune_parser
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.online_pgd import OnlinePGD

ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])
ONLINE = sorted(set(SETTINGS) - {"advpt"})
BETA = 2.5
TRADES = {"objective": "trades", "trades_beta": BETA}
OWN = {"ampt": {"clean_share": 0.3}, "capt": {}, "nap": {}, "apt": {}}


def slow_divergence(clean: list[torch.Tensor], adv: list[torch.Tensor]) -> torch.Tensor:
    """``KL(p_clean || p_adv)``, the mean over the images."""
    total = 0
    for p, q in zip(map(log_probabilities, clean), map(log_probabilities, adv), strict=True):
        total = total + sum(p[c].exp() * (p[c] - q[c]) for c in range(len(p)))
    return total / len(clean)


def slow_pair(tuner, step):
    """Clean and adversarial logits of each image, ``[C]``; a mixture's by the plain head."""
    model = reference_of(tuner)
    if tuner.method == "ampt":
        return [list(model(x)) for x in (step.images, step.adv)]
    return [logits_of(model, x) for x in (step.images, step.adv)]


# the weights of the cross-entropies of clean and adversarial images; for NAP, w is 1/4
WEIGHTS = {"apt": (1, 1), "ampt": (0.3, 0.7), "capt": (1, 1), "nap": (0.75, 0.25)}


@ENGINES
@pytest.mark.parametrize("method", ONLINE)
def test_trades_replaces_the_adversarial_cross_entropy(method, engine):
    """Against the method's own loss, which other tests hold to its formula."""
    tuner = tuner_of(method, engine, **OWN[method], **TRADES)
    own = tuner_of(method, engine, **OWN[method])
    step = first_step(tuner)
    clean, adv = slow_pair(tuner, step)
    of_clean, of_adv = WEIGHTS[method]
    wanted = of_adv * BETA * slow_divergence(clean, adv)
    if method == "apt":
        wanted = wanted + of_clean * cross_entropy(clean, step.labels)
    else:
        own.prompts.load_state_dict(tuner.prompts.state_dict())
        own.prompts = tuner.prompts  # so that the gradients are of the same tensors
        own.model = tuner.model
        wanted = wanted + own.loss(step)
        if method != "capt":  # whose cross-entropy is of the clean images alone
            wanted = wanted - of_adv * cross_entropy(adv, step.labels)
    agree(tuner.prompts, tuner.loss(step), wanted)


@pytest.mark.parametrize("attack_loss", ["ce", "margin", "targeted-dlr", "mixed", "kl", None])
def test_the_attack_has_the_chosen_loss(attack_loss):
    """By default that of TRADES."""
    settings = {} if attack_loss is None else {"attack_loss": attack_loss}
    step = first_step(tuner_of("apt", **TRADES, **settings))
    tuner = tuner_of("apt")
    config, name = tuner.config, attack_loss or "kl"
    attack = OnlinePGD(
        *(tuner.model, config.eps, config.step_size, config.steps),
        attack_loss=name,
        seed=config.seed,
    )
    wanted = attack(step.images, step.labels, step.rows, draw=step.draw).images
    assert torch.equal(step.adv, wanted)
    plain = first_step(tuner).adv
    assert torch.equal(step.adv, plain) == (name == "ce")


@pytest.mark.parametrize("method", ONLINE)
def test_by_default_nothing_has_changed(method):
    """The settings' defaults, and those of the published code, are the published loss."""
    kind = TUNERS[method].Config
    configs = [kind()] + ([kind.published()] if method in ("apt", "nap") else [])
    for config in configs:
        assert (config.attacked_loss, config.objective) == ("ce", "ce")
    plain, named = (
        tuner_of(method, augment=False, **options)
        for options in ({}, {"attack_loss": "ce", "trades_beta": 1.0})
    )
    losses = [tuner.loss(first_step(tuner)) for tuner in (plain, named)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("method", ONLINE)
def test_a_run_with_mixed_losses_and_trades_resumes_to_the_same_bits(
    method, small_clip, tmp_path, monkeypatch
):
    settings = {**SETTINGS[method], **OWN[method], **TRADES, "attack_loss": "mixed", "epochs": 3}

    def fit(folder, resume=False):
        tuner = TUNERS[method](small_clip, NAMES, settings)
        return tuner.fit(data(), data(6), folder, resume=resume, progress=False)

    whole = fit(tmp_path / "whole").prompts.state_dict()
    real, seen = TUNERS[method].loss, []

    def loss(self, batch):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(TUNERS[method], "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped")
    monkeypatch.undo()
    resumed = fit(tmp_path / "stopped", resume=True).prompts.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    config = RunFolder(tmp_path / "stopped").read_config()["config"]
    wanted = {"attack_loss": "mixed", "objective": "trades", "trades_beta": BETA}
    assert {name: config[name] for name in wanted} == wanted
    loaded = TUNERS[method].load(tmp_path / "stopped", small_clip)
    assert all(torch.equal(p, whole[n]) for n, p in loaded.prompts.state_dict().items())


def test_the_settings_are_options_of_the_command(capsys):
    parser = tune_parser("nap")
    given = parser.parse_args(["--attack_loss=targeted-dlr", "--objective=trades"])
    assert (given.attack_loss, given.objective, given.trades_beta) == ("targeted-dlr", "trades", 6)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name} " in shown for name in ("attack_loss", "objective", "trades_beta"))


@pytest.mark.parametrize("options", [{"attack_loss": "mixed"}, TRADES], ids=["mixed", "trades"])
def test_validation_uses_the_attack_of_training(options):
    tuner = tuner_of("apt", **options)
    tuner._pictures["val"] = tuner._pictures["train"]
    row = tuner.validate()
    assert row["val_stalled"] == 0
    assert 0 <= row["val_robust"] <= row["val_accuracy"]


def test_losses_and_gradients_of_low_precision_towers_are_float32(small_clip):
    tuner = tuner_of("nap", clip=small_clip, precision="bf16", attack_loss="mixed", **TRADES)
    loss = tuner.loss(first_step(tuner))
    assert loss.dtype == torch.float32
    loss.backward()
    assert {p.grad.dtype for p in tuner.prompts.parameters()} == {torch.float32}


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (AMPTConfig, {}, r"clean images with .*, but clean_share=0 .*above 0"),
        (NAPConfig, {"schedule": "fixed", "adv_share": 1}, r"clean .*adv_share=1 .*below 1"),
        (CAPTConfig, {"ce": "adv"}, r"clean images with .*, but ce='adv' .*ce='clean'"),
        (CoOpConfig, {}, r"must be 'ce' for CoOp.*'trades'"),
    ],
)
def test_trades_without_clean_images_is_refused(config, settings, message):
    with pytest.raises(ValueError, match=rf"^objective.* {message}"):
        config(objective="trades", **settings)


def test_trades_needs_no_more_than_some_clean_images():
    assert NAPConfig(objective="trades", adv_share=1).schedule == "linear"
    assert AMPTConfig(objective="trades", clean_share=0.1).attacked_loss == "kl"
    with pytest.raises(ValueError, match=r"^attack_loss needs random_start=True with 'kl'"):
        APTConfig(objective="trades", random_start=False)
    assert APTConfig(objective="trades", random_start=False, attack_loss="dlr")
    assert NAPConfig.published(objective="trades", attack_loss="ce").objective == "trades"


def test_a_tuner_for_too_few_classes_is_refused_before_it_tunes():
    with pytest.raises(ValueError, match=r"^attack_loss needs at least 3 .*'dlr', got 2: use 'ce'"):
        APTTuner(clip_of(), NAMES[:2], attack_loss="dlr")
    with pytest.raises(ValueError, match=r"^attack_loss needs at least 4 .*'mixed', got 3"):
        APTTuner(clip_of(), NAMES[:3], attack_loss="mixed")
