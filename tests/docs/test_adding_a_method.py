"""The method of docs/guides/adding_a_method.md works: one class, one registry line."""

import re
from pathlib import Path

import pytest
import torch
from helpers.method_checks import SETTINGS, data, first_step, relative, tuner_of
from helpers.models import small_model

from fastprompt._utils.run_folder import RunFolder
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.methods import registry

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "adding_a_method.md").read_text("utf-8")


@pytest.fixture
def trades(monkeypatch):
    """The page's class, registered."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {"__name__": "trades"}
    exec(compile(code, "adding_a_method.md", "exec"), names)
    tuner = names["TRADESTuner"]
    monkeypatch.setitem(registry.TUNERS, tuner.method, tuner)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    return tuner


def test_the_method_of_the_page_is_a_command(trades, tmp_path, capsys):
    arguments = "--data patterns --shots 1 --epochs 2 --steps 1 --n_ctx 2 --attacks clean"
    folder = tmp_path / "run"
    command = ["tune", "trades", *arguments.split(), "--beta=3", "--eps=1/255", "--eval_limit=6"]
    assert main([*command, f"--out={folder}"]) == 0
    assert "trades on tiny-photos" in capsys.readouterr().out
    run = RunFolder(folder)
    assert run.read_config()["config"]["beta"] == 3
    assert {"ce", "divergence", "stalled", "val_robust"} <= run.read_metrics()[-1].keys()
    loaded = trades.load(folder)
    assert loaded.config.beta == 3
    assert not torch.equal(
        loaded.prompts.tokens, trades(loaded.clip, loaded.classnames, n_ctx=2).prompts.tokens
    )


def test_its_loss_is_that_of_the_objective(trades):
    plain = tuner_of("apt", objective="trades", trades_beta=3.0, attack_loss="ce")
    settings = {**SETTINGS["apt"], "beta": 3.0}
    tuner = trades(plain.clip, plain.classnames, **settings)
    tuner.prompts.load_state_dict(plain.prompts.state_dict())
    tuner.prepare(data(), None, None, False)
    step, wanted = first_step(tuner), first_step(plain)
    assert torch.equal(step.adv, wanted.adv)
    assert relative(tuner.loss(step), plain.loss(wanted)) <= 1e-12


def test_every_file_that_the_page_names_is_there():
    root = Path(__file__).parents[2]
    for name in re.findall(
        r"`((?:tuning|methods|model|towers|tests|fastprompt)/[\w/]*(?:\.py)?)`", PAGE
    ):
        assert (root / name).exists() or (root / "fastprompt" / name).exists(), name
