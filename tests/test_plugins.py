"""Methods, attacks and data sources of other packages, found by their entry points."""

import sys

import pytest
import torch
from helpers.models import small_model
from helpers.plugin_packages import ENTRIES, TOY, package
from helpers.processes import python
from PIL import Image

from fastprompt import PGD, AutoTuner, evaluate, load_data
from fastprompt._utils import plugins
from fastprompt.cli.completion import command_tree
from fastprompt.cli.main import main
from fastprompt.cli.tune_parser import tune_parser
from fastprompt.clip import bundled
from fastprompt.evaluation.plan import plan_attacks
from fastprompt.methods import registry


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The registry and the imported modules as they were."""
    monkeypatch.setattr(registry, "TUNERS", registry.TUNERS)
    before, modules = dict(registry.TUNERS), set(sys.modules)
    yield
    registry.TUNERS.clear()
    registry.TUNERS.update(before)
    for name in set(sys.modules) - modules:
        if name.endswith("_plugin"):
            del sys.modules[name]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An installed package with one plugin of each group."""
    monkeypatch.syspath_prepend(package(tmp_path / "site"))
    registry.add_plugins()
    return sys.modules["toy_plugin"]


def test_a_method_is_a_command(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    job = "--data patterns --shots 1 --epochs 1 --steps 1 --n_ctx 2 --attacks clean,half-steps"
    out = f"--out={tmp_path / 'run'}"
    assert main(["tune", "toy", *job.split(), "--gain=3", "--eval_limit=6", out]) in (0, 1)
    assert "half-steps" in capsys.readouterr().out
    for tuner in (AutoTuner.load(tmp_path / "run"), toy.ToyTuner.load(tmp_path / "run")):
        assert type(tuner) is toy.ToyTuner
        assert tuner.config.gain == 3
    saved = tuner.save_pretrained(tmp_path / "saved")
    assert AutoTuner.from_pretrained(saved).config.gain == 3
    assert main(["tune", "toy", "--help"]) == 0
    assert "factor of the loss" in capsys.readouterr().out


def test_the_usage_lists_the_method_and_imports_nothing_of_it(tmp_path):
    site = package(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(site)!r})\nfrom fastprompt.cli.main import main\n"
    assert python(f"{code}main(['--help']); print('toy_plugin' in sys.modules)").endswith("False")
    listed = python(f"{code}main(['tune', '--help'])")
    assert "methods: advpt, apt, ampt, capt, nap, coop, toy" in listed


def test_an_attack_by_name(toy, small_clip):
    data = load_data("patterns", shots=1)
    model = small_clip.zero_shot(data.classnames)
    options = {"limit": 12, "sanity": "off", "search_precision": "own", "progress": False}
    found = evaluate(
        model,
        data.test,
        ["half-steps", "half-steps-2", "half-steps@own"],
        "2/255",
        **options,
        surrogates={"own": model},
    )
    for name, steps in (("half-steps", 3), ("half-steps-2", 2)):
        row = found.row("model", name, "2/255")
        assert row["path"] == "adaptive"
        assert row["settings"]["steps"] == steps
        assert row["settings"]["package"] == "toy-plugin 1.0"
        by_hand = PGD(model, 2 / 255, 1 / 255, steps)
        rows = torch.tensor(found.data["indices"])
        images, labels = data.test.images[rows].float() / 255, data.test.labels[rows]
        right = model(images).argmax(1) == labels
        stand = right & ~by_hand.run(images, labels, indices=rows).success
        assert row["correct"] <= int(stand.sum())  # any iterate counts
    assert found.row("model", "half-steps@own", "2/255")["path"] == "transfer:own"


def test_an_attack_outside_its_ball_is_refused(toy, small_clip):
    data = load_data("patterns", shots=1)
    model = small_clip.zero_shot(data.classnames)
    options = {"limit": 12, "sanity": "off", "progress": False, "stop": False}
    with pytest.raises(RuntimeError, match=r"attacks: outside-1 .*distance"):
        evaluate(model, data.test, ["outside-1"], "2/255", **options)
    with pytest.raises(ValueError, match="'outside' needs a number of steps"):
        evaluate(model, data.test, ["outside"], **options)
    with pytest.raises(ValueError, match="did you mean 'half-steps'"):
        evaluate(model, data.test, ["half-stepz"], **options)


def test_data_by_prefix(toy, tmp_path, monkeypatch):
    for kind, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), color).save(tmp_path / f"pictures/{kind}/{i}.png")
    monkeypatch.chdir(tmp_path)
    data = load_data("toys:pictures", shots=2)
    assert (data.name, data.classnames) == ("toys:pictures", ["blue", "red"])
    assert len(data.train) == 4
    assert data.source["name"] == "toys:pictures"
    plain = load_data(tmp_path / "pictures", shots=2)
    assert data.train.fingerprint == plain.train.fingerprint
    with pytest.raises(ValueError, match=r"did you mean .*toys:"):
        load_data("toyz:pictures")


def test_broken_plugins_are_named_and_the_others_work(tmp_path, monkeypatch, caplog):
    site = package(tmp_path / "site")
    package(site, "raises-plugin", "raise OSError('no license')", _method("raises"))
    package(site, "exits-plugin", "import sys; sys.exit(3)", _method("exits"))
    package(site, "empty-plugin", "", _method("empty"))
    package(site, "number-plugin", "Tuner = 3", _method("number"))
    package(site, "other-plugin", TOY.replace("class ToyTuner", "class Tuner"), _method("other"))
    monkeypatch.syspath_prepend(site)
    registry.add_plugins()
    registry.add_plugins()  # as often as it is asked: one warning each
    said = [record.getMessage() for record in caplog.records]
    for name, why in {
        "raises": "OSError: no license",
        "exits": "SystemExit: 3",
        "empty": "has no attribute 'Tuner'",
        "number": "must be a subclass of Tuner, got 3",
        "other": "must have the entry point's name as its method, got 'toy'",
    }.items():
        assert name not in registry.TUNERS
        (line,) = [text for text in said if f"the plugin '{name}'" in text]
        assert why in line
        assert f"of {name}-plugin 1.0" in line
    assert "toy" in registry.TUNERS


def test_names_that_are_taken(tmp_path, monkeypatch, caplog):
    site = package(tmp_path / "site")
    first = {
        "fastprompt.methods": {"apt": "toy_plugin:ToyTuner", "To y": "toy_plugin:ToyTuner"},
        "fastprompt.attacks": {"square": "toy_plugin:HalfSteps", "pgdx": "toy_plugin:HalfSteps"},
        "fastprompt.data": {"coop": "toy_plugin:pictures", "hf": "toy_plugin:pictures"},
    }
    package(site, "taken-plugin", TOY, first)
    package(
        site,
        "zweiter-plugin",
        TOY,
        {
            g: {n: f"zweiter_plugin:{v.split(':')[1]}"}
            for g, own in ENTRIES.items()
            for n, v in own.items()
        },
    )
    monkeypatch.syspath_prepend(site)
    apt = registry.TUNERS["apt"]
    registry.add_plugins()
    assert registry.TUNERS["apt"] is apt
    with pytest.raises(ValueError, match="unknown attack"):
        evaluate(lambda x: x, load_data("patterns", shots=1).test, ["squarish"])
    with pytest.raises(FileNotFoundError):
        load_data("coop:Caltech101", root=tmp_path)
    assert plugins.plugins(plugins.DATA, ("coop", "hf")).keys() == {"toys"}
    said = caplog.text
    for name in ("'apt'", "'square'", "'pgdx'", "'coop'", "'hf'"):
        assert f"the plugin {name}" in said
    assert (
        "the plugin 'toy' (fastprompt.methods, zweiter_plugin:ToyTuner) of zweiter-plugin" in said
    )
    assert "the plugin 'toy' (fastprompt.methods, toy_plugin" not in said.split("that name")[-1]


def _method(name: str) -> dict[str, dict[str, str]]:
    return {"fastprompt.methods": {name: f"{name}_plugin:Tuner"}}


def test_a_method_without_docstring_and_an_attack_named_as_a_feature_attack(tmp_path, monkeypatch):
    code = TOY.replace('    """Tunes a text context with APT\'s loss times a factor."""\n', "")
    assert code != TOY
    entries = {
        "fastprompt.methods": {"toy": "toy_plugin:ToyTuner"},
        "fastprompt.attacks": {"feature-mim": "toy_plugin:HalfSteps"},
    }
    monkeypatch.syspath_prepend(package(tmp_path / "site", code=code, entries=entries))
    registry.add_plugins()
    command_tree(None)
    assert "Tune toy prompts." in tune_parser("toy").format_help()
    (planned,) = [each for each in plan_attacks(["feature-mim-3"], "1/255") if each.eps]
    assert planned.path == "adaptive"
