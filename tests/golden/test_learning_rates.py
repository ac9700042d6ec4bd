"""The learning rate of each epoch, against the scheduler that the authors' code uses."""

import pytest
import torch
from helpers.golden import assert_near, learning_rates

from fastprompt.methods.advpt import AdvPTConfig
from fastprompt.methods.apt import APTConfig
from fastprompt.methods.nap import NAPConfig
from fastprompt.tuning.config import TunerConfig
from fastprompt.tuning.optimizers import learning_rate


def rates_of(config: TunerConfig) -> torch.Tensor:
    rates = [learning_rate(config, epoch) for epoch in range(config.epochs)]
    return torch.tensor(rates, dtype=torch.float64)


@pytest.mark.parametrize("settings", learning_rates())
def test_learning_rates(settings):
    wanted = learning_rates()[settings]
    given = {name: float(value) for name, value in (s.split("=") for s in settings.split(","))}
    whole = {name: int(given.pop(name)) for name in ("epochs", "warmup_epochs")}
    found = rates_of(APTConfig(**given, **whole))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    assert_near(found, wanted)


@pytest.mark.parametrize(
    ("config", "settings", "lr"),
    [
        (AdvPTConfig.published(), "lr=0.002,epochs=100,warmup_epochs=1,warmup_lr=1e-5", 0.002),
        (APTConfig.published(), "lr=0.0035,epochs=50,warmup_epochs=1,warmup_lr=1e-5", 0.0035),
        (NAPConfig.published(), "lr=0.0001,epochs=20,warmup_epochs=1,warmup_lr=1e-5", 0.0001),
    ],
    ids=["advpt", "apt", "nap"],
)
def test_learning_rates_of_the_published_settings(config, settings, lr):
    """The file's, at the settings' own ``lr`` and ``warmup_lr``."""
    wanted = learning_rates()[settings] * (config.lr / lr)
    wanted[0] = config.warmup_lr
    assert_near(rates_of(config), wanted)
