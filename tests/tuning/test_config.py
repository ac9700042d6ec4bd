"""Settings: the same from every source, and told at once when they are wrong."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprompt.cli import main as cli
from fastprompt.methods.advpt import AdvPTConfig, AdvPTTuner
from fastprompt.methods.ampt import AMPTConfig
from fastprompt.methods.apt import APTConfig
from fastprompt.methods.capt import CAPTConfig
from fastprompt.methods.nap import NAPConfig
from fastprompt.tuning.config import TunerConfig, as_dict, build, read_config, typed

# no value is its default
VALUES = {
    "epochs": 7,
    "batch": 5,
    "drop_last": True,
    "accumulate": 2,
    "lr": 0.01,
    "seed": 3,
    "n_ctx": 4,
    "ctx_init": "a photo of a",
    "template": "[ctx] of {}.",
    "eps": "4/255",
    "steps": 2,
    "alpha": "1/255",
    "start": "one-sided",
    "clamp": "steps",
    "attack_batch": 16,
    "warmup_epochs": 0,
    "warmup_lr": 1e-3,
    "optimizer": "adamw",
    "momentum": 0.5,
    "weight_decay": 0.0,
    "keep": "best",
    "patience": 3,
    "init_from": "some/run",
    "bank_dir": "some/banks",
    "workers": 1,
    "engine": "reference",
    "precision": "fp32",
    "compile": True,
    "class_chunk": 7,
    "class_shards": 3,
}
WANTED = AdvPTConfig(**VALUES)


class Stop(Exception):
    pass


def from_command_line(arguments, monkeypatch):
    """The settings that ``fastprompt tune advpt`` would hand to the tuner."""
    seen = []

    def tuner(clip, classnames, config, **overrides):
        seen.append(build(AdvPTConfig, {}, config, overrides))
        raise Stop

    for name in ("Config", "job", "shots", "takes_runner", "settings_from"):
        setattr(tuner, name, getattr(AdvPTTuner, name))
    tuner.presets = {}
    tuner.__doc__ = "Tunes nothing."
    for module in ("tune", "tune_parser", "tune_run"):
        monkeypatch.setattr(f"fastprompt.cli.{module}.TUNERS", {"advpt": tuner})
    monkeypatch.setattr("fastprompt.cli.tune_run.model_of", lambda job: Blank())
    monkeypatch.setattr("fastprompt.cli.tune_run.load_data", lambda *a, **k: Blank())
    assert cli.main(["tune", "advpt", *arguments]) == 1  # as for any unexpected exception
    return seen[0]


class Blank:
    """Stands for a model and for data."""

    image_size, channels, classnames, templates = 48, 3, ("a", "b"), ("{}",)

    def for_model(self, clip):
        return self


def config_file(folder, text, name="settings.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- one result from every source ------------------------------------------------------------


def test_the_values_cover_all_settings_and_none_is_a_default():
    defaults = AdvPTConfig()
    assert set(VALUES) == {f.name for f in dataclasses.fields(AdvPTConfig)}
    assert not any(getattr(WANTED, name) == getattr(defaults, name) for name in VALUES)


def test_keywords_mapping_and_dataclass_agree():
    assert build(AdvPTConfig, {}, None, VALUES) == WANTED
    assert build(AdvPTConfig, {}, VALUES, {}) == WANTED
    assert build(AdvPTConfig, {}, WANTED, {}) == WANTED


@pytest.mark.parametrize("as_path", [str, Path])
def test_files_agree(tmp_path, as_path):
    by_yaml = config_file(tmp_path, yaml.safe_dump(VALUES))
    by_json = config_file(tmp_path, json.dumps(VALUES), "settings.json")
    for path in (by_yaml, by_json):
        assert build(AdvPTConfig, {}, as_path(path), {}) == WANTED


def test_command_line_agrees(tmp_path, monkeypatch):
    flags = [f"--{name}={value}" for name, value in VALUES.items()]
    apart = [part for name, value in VALUES.items() for part in (f"--{name}", str(value))]
    assert from_command_line(flags, monkeypatch) == WANTED
    assert from_command_line(apart, monkeypatch) == WANTED
    path = config_file(tmp_path, yaml.safe_dump(VALUES))
    assert from_command_line(["--config", str(path)], monkeypatch) == WANTED


def test_what_was_saved_is_the_same_again():
    assert AdvPTConfig(**json.loads(json.dumps(as_dict(WANTED)))) == WANTED


def test_numbers_are_read_as_people_write_them(tmp_path):
    text = "lr: 1e-3\neps: 4/255\nwarmup_lr: 1.e-6\nalpha: null\nweight_decay: 0\n"
    config = build(AdvPTConfig, {}, config_file(tmp_path, text), {})
    assert (config.lr, config.eps, config.warmup_lr) == (1e-3, 4 / 255, 1e-6)
    assert (config.alpha, config.weight_decay) == (None, 0)


@pytest.mark.parametrize("name", ["bank_dir", "init_from"])
@pytest.mark.parametrize("folder", ["some/folder", Path("some/folder")])
def test_a_folder_may_be_a_path(name, folder):
    for config in (
        AdvPTConfig(**{name: folder}),
        build(AdvPTConfig, {}, None, {name: folder}),
    ):
        # a run that starts from another is resumed from wherever
        wanted = Path("some/folder").resolve() if name == "init_from" else Path("some/folder")
        assert getattr(config, name) == str(wanted)
        json.dumps(as_dict(config))


# ---- precedence ------------------------------------------------------------------------------


def test_keywords_win_over_config_over_preset_over_defaults(tmp_path):
    preset = {"epochs": 2, "batch": 2, "n_ctx": 2}
    given_ = {"epochs": 3, "batch": 3}
    path = config_file(tmp_path, yaml.safe_dump(given_))
    for config in (given_, path):
        built = build(AdvPTConfig, preset, config, {"epochs": 4})
        assert (built.epochs, built.batch, built.n_ctx) == (4, 3, 2)
        assert built.lr == AdvPTConfig().lr


def test_a_whole_dataclass_leaves_the_preset_out():
    built = build(AdvPTConfig, {"epochs": 2, "n_ctx": 2}, AdvPTConfig(epochs=3), {"batch": 4})
    assert built == AdvPTConfig(epochs=3, batch=4)


def test_flags_win_over_the_file_on_the_command_line(tmp_path, monkeypatch):
    path = config_file(tmp_path, "epochs: 3\nbatch: 4\n")
    config = from_command_line(["--epochs=5", f"--config={path}"], monkeypatch)
    assert config == AdvPTConfig(epochs=5, batch=4)


def test_an_empty_file_changes_nothing(tmp_path):
    assert build(AdvPTConfig, {}, config_file(tmp_path, "# nothing\n"), {}) == AdvPTConfig()


# ---- what is wrong is told by name -----------------------------------------------------------

WRONG = [
    ("epochs", "many"),
    ("epochs", 2.5),
    ("epochs", 0),
    ("epochs", True),
    ("epochs", None),
    ("batch", -1),
    ("accumulate", 0),
    ("accumulate", 1.5),
    ("optimizer", "adam"),
    ("optimizer", None),
    ("keep", "first"),
    ("keep", None),
    ("patience", 0),
    ("patience", "long"),
    ("class_chunk", 0),
    ("seed", -1),
    ("seed", 2**32),
    ("lr", -1),
    ("lr", 0),
    ("lr", "fast"),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", None),
    ("lr", True),
    ("n_ctx", 0),
    ("template", "[ctx] a photo"),
    ("n_ctx", [4]),
    ("start", "three-sided"),
    ("start", None),
    ("eps", "9"),
    ("eps", 8),
    ("eps", -0.1),
    ("eps", 0),
    ("eps", "8/0"),
    ("eps", True),
    ("eps", None),
    ("eps", [0.1]),
    ("alpha", 0),
    ("alpha", "2"),
    ("steps", 0),
    ("attack_batch", 0),
    ("warmup_epochs", -1),
    ("warmup_lr", -1e-5),
    ("momentum", -0.9),
    ("momentum", "much"),
    ("weight_decay", -1),
    ("weight_decay", math.nan),
    ("workers", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_told_with_its_setting(tmp_path, name, value):
    path = config_file(tmp_path, yaml.safe_dump({name: value}))
    calls = [
        lambda: AdvPTConfig(**{name: value}),
        lambda: build(AdvPTConfig, {}, None, {name: value}),
        lambda: build(AdvPTConfig, {}, {name: value}, {}),
        lambda: build(AdvPTConfig, {}, AdvPTConfig(), {name: value}),
        lambda: build(AdvPTConfig, {}, path, {}),
    ]
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b") as error:
            call()
        assert "\n" not in str(error.value)


def test_a_forgotten_255_is_offered(tmp_path):
    for config in ({"eps": 8}, {"eps": "8"}, config_file(tmp_path, "eps: 8")):
        with pytest.raises(ValueError, match=r"^eps .*1.*8/255"):
            build(AdvPTConfig, {}, config, {})


def test_an_unknown_setting_is_told_with_the_nearest(tmp_path):
    path = config_file(tmp_path, "epoch: 3")
    for config, overrides in (({"epoch": 3}, {}), (None, {"epoch": 3}), (path, {})):
        with pytest.raises(ValueError, match=r"config key 'epoch'.*'epochs'"):
            build(AdvPTConfig, {}, config, overrides)


def test_another_methods_setting_is_unknown():
    with pytest.raises(ValueError, match="config key 'eps'"):
        typed(TunerConfig, {"eps": 4})


@pytest.mark.parametrize("key", [1, None, True])
def test_keys_that_are_no_names_are_unknown(tmp_path, key):
    with pytest.raises(ValueError, match=f"config key '{key}'"):
        build(AdvPTConfig, {}, config_file(tmp_path, yaml.safe_dump({key: 2})), {})


@pytest.mark.parametrize(
    "text", ["lr: [1", "{", "a: b: c", "\tlr: 1", "lr: 1\n  eps: 2", "!!python/object:os.x {}"]
)
def test_a_broken_file_is_told_by_name(tmp_path, text):
    path = config_file(tmp_path, text)
    with pytest.raises(ValueError, match=rf"^config: {re.escape(str(path))} .*YAML") as error:
        read_config(AdvPTConfig, path)
    assert "\n" not in str(error.value)


def test_a_binary_file_is_told_by_name(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(ValueError, match=rf"^config: {re.escape(str(path))} .*YAML"):
        read_config(AdvPTConfig, path)


@pytest.mark.parametrize(("text", "kind"), [("- epochs", "list"), ("epochs", "str"), ("3", "int")])
def test_a_file_without_names_is_told(tmp_path, text, kind):
    with pytest.raises(ValueError, match=rf"^config: .* {kind}\b"):
        read_config(AdvPTConfig, config_file(tmp_path, text))


def test_a_missing_file_is_told_by_name(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^config: .*{re.escape(str(path))}"):
            build(AdvPTConfig, {}, path, {})


@pytest.mark.parametrize("config", [3, ["epochs"], TunerConfig()])
def test_a_config_of_another_type_is_refused(config):
    with pytest.raises(TypeError, match=f"^config .*AdvPTConfig.*{type(config).__name__}"):
        build(AdvPTConfig, {}, config, {})


# ---- published settings ----------------------------------------------------------------------

PUBLISHED = {"nap": NAPConfig, "advpt": AdvPTConfig, "apt": APTConfig}


def different(config: TunerConfig) -> set[str]:
    """The settings that differ from the defaults."""
    default = as_dict(type(config)())
    return {name for name, value in as_dict(config).items() if value != default[name]}


def test_published_settings_differ_from_the_defaults_where_the_pages_say():
    assert different(AdvPTConfig.published()) == {"start", "clamp"}
    assert different(APTConfig.published()) == {
        *("epochs", "drop_last", "keep", "alpha", "clamp", "crops"),
    }
    assert different(NAPConfig.published()) == {
        *("drop_last", "warmup_lr", "weight_decay", "keep", "precision", "refiner_start"),
        *("map_start", "random_start", "clamp", "crops"),
    }


def test_published_attacks():
    nap, apt = NAPConfig.published(), APTConfig.published()
    assert nap.step_size == pytest.approx(0.3 * 4 / 255, rel=1e-12)
    assert NAPConfig.published(eps="1/255").step_size == pytest.approx(0.3 / 255, rel=1e-12)
    assert apt.step_size == pytest.approx(2.67 / 255, rel=1e-12)
    assert (nap.steps, nap.random_start, nap.clamp) == (5, False, "end")
    assert (apt.steps, apt.random_start, apt.clamp) == (3, True, "inputs")


@pytest.mark.parametrize("cls", PUBLISHED.values(), ids=PUBLISHED)
def test_published_settings_may_be_overridden(cls):
    config = cls.published(epochs=3, eps="1/255")
    assert type(config) is cls
    assert different(config) - different(cls.published()) <= {"epochs", "eps"}
    assert (config.epochs, config.eps) == (3, 1 / 255)
    with pytest.raises(ValueError, match=r"config key 'epocs'.*'epochs'"):
        cls.published(epocs=3)
    with pytest.raises(ValueError, match=r"^epochs .* 0"):
        cls.published(epochs=0)


@pytest.mark.parametrize("cls", [AMPTConfig, CAPTConfig, TunerConfig])
def test_methods_without_public_code_have_no_published_settings(cls):
    with pytest.raises(ValueError, match=rf"^{cls.__name__} has no published .*no code"):
        cls.published()


def test_a_method_derived_from_another_has_not_its_published_settings():
    class Own(APTConfig):
        pass

    with pytest.raises(ValueError, match=r"^Own has no published"):
        Own.published()


def test_a_preset_does_not_apply_to_published_settings():
    config = build(NAPConfig, {"epochs": 9, "keep": "best"}, NAPConfig.published(), {"batch": 4})
    assert config == NAPConfig.published(batch=4)


# ---- the dataclass itself --------------------------------------------------------------------


def test_settings_are_frozen_and_hashable():
    config = AdvPTConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    assert hash(config) == hash(AdvPTConfig())
    assert len({config, AdvPTConfig(), WANTED}) == 2


def test_equal_radii_are_equal_settings():
    assert AdvPTConfig(eps="8/255") == AdvPTConfig(eps=8 / 255) == AdvPTConfig()


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 10**6),
            "lr": st.floats(1e-12, 1e3),
            "seed": st.integers(0, 2**32 - 1),
            "eps": st.floats(1e-6, 1) | st.integers(1, 255).map(lambda n: f"{n}/255"),
            "alpha": st.none() | st.floats(1e-6, 1),
            "start": st.sampled_from(["two-sided", "one-sided"]),
            "momentum": st.floats(0, 1),
        },
    )
)
def test_all_good_settings_survive_json(values):
    config = build(AdvPTConfig, {}, values, {})
    plain = json.loads(json.dumps(as_dict(config), allow_nan=False))
    assert AdvPTConfig(**plain) == build(AdvPTConfig, {}, plain, {}) == config
