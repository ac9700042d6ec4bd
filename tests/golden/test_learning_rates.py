"""The learning rate of each epoch, against the scheduler that the authors' code uses."""

import pytest
from helpers.golden import learning_rates

from fastprompt.methods.apt import APTConfig
from fastprompt.tuning.optimizers import learning_rate

RATES = learning_rates()


@pytest.mark.parametrize("settings", RATES)
def test_learning_rates(settings):
    given = {name: float(value) for name, value in (s.split("=") for s in settings.split(","))}
    whole = {name: int(given.pop(name)) for name in ("epochs", "warmup_epochs")}
    config = APTConfig(**given, **whole)
    found = [learning_rate(config, epoch) for epoch in range(config.epochs)]
    assert found == pytest.approx(RATES[settings], rel=1e-12)
