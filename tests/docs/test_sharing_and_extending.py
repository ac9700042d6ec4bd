"""The examples of docs/guides/sharing.md and extending.md run."""

import re
from pathlib import Path

import pytest
import torch
from helpers.models import small_model
from helpers.plugin_packages import package

from fastprompt import APTTuner, load_data
from fastprompt.clip import bundled
from fastprompt.evaluation.plan import plan_attacks

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def page(name, kind="python"):
    return re.findall(rf"```{kind}\n(.*?)```", (GUIDES / name).read_text("utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    monkeypatch.chdir(tmp_path)


def test_sharing():
    APTTuner("tiny-shapes", ["red", "blue"], n_ctx=2).save("runs/first")
    (code,) = page("sharing.md")
    names: dict = {}
    exec(code, names)
    assert torch.equal(names["again"].prompts.tokens, names["tuner"].prompts.tokens)


def test_a_package_with_the_page_entry_points(tmp_path, monkeypatch):
    (toml,) = page("extending.md", "toml")
    groups = re.findall(r'\."(fastprompt\.\w+)"\]\n([\w-]+) = "(.*)"', toml)
    assert len(groups) == 3
    entries = {group: {name: value} for group, name, value in groups[1:]}
    site = package(tmp_path / "site", "my-package", page("extending.md")[0], entries)
    monkeypatch.syspath_prepend(site)
    (plan,) = plan_attacks("half-steps-20", "4/255")
    assert plan.settings["steps"] == 20
    assert plan_attacks("half-steps", "4/255")[0].settings["steps"] == 10
    with pytest.raises(FileNotFoundError, match="pictures/one"):
        load_data("camera:one")


def test_callbacks(capsys):
    exec(page("extending.md")[1], {"__name__": "page"})
    assert capsys.readouterr().out.splitlines()[-1] == "complete"
    assert list(Path("runs/tracked/tensorboard").iterdir())
