"""Run folders: what was written comes back, and what is not theirs is refused by name."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from fastprompt._utils import run_folder
from fastprompt._utils import versions as module
from fastprompt._utils.run_folder import RunFolder
from fastprompt._utils.versions import versions

CONFIG = {
    "method": "advpt",
    "config": {"epochs": 3, "eps": 0.1, "bank_dir": None},
    "classnames": ["cat", "größter Hund"],
    "clip": {"name": "custom", "source": None, "fingerprint": "ab"},
}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(CONFIG)
    return folder


def refused(call, match, path, error=ValueError):
    """``call`` raises ``error`` and names ``path``."""
    with pytest.raises(error, match=match) as raised:
        call()
    assert str(path) in str(raised.value)


# ---- config.json -----------------------------------------------------------------------------


def test_config_round_trip(run):
    config = run.read_config()
    assert {k: config[k] for k in CONFIG} == CONFIG
    assert config["format"] == run_folder.FORMAT
    assert config["versions"] == versions()
    assert RunFolder(str(run.path)).read_config() == config


def test_versions_name_what_a_result_depends_on(monkeypatch):
    found = versions()
    assert {"python", "fastprompt", "torch", "torchvision", "open_clip_torch"} <= set(found)
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    assert versions()["triton"] == "not installed"


def test_a_folder_has_started_once_it_has_a_config(tmp_path, run):
    assert run.started
    for path in (tmp_path, tmp_path / "none"):
        assert not RunFolder(path).started
        with pytest.raises(FileNotFoundError, match=r"run folder.* config\.json"):
            RunFolder(path).read_config()


def test_a_config_cut_anywhere_is_refused(run):
    path = run.path / "config.json"
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused(run.read_config, "JSON.* damaged", path)


@pytest.mark.parametrize("format_", [0, 2, "1", None])
def test_a_config_of_another_format_is_refused(run, format_):
    path = run.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": format_}))
    refused(run.read_config, f"format {format_!r}.* 1", path)


@pytest.mark.parametrize("foreign", [{}, {"name": "a package", "scripts": {}}])
def test_a_foreign_config_is_refused(run, foreign):
    path = run.path / "config.json"
    path.write_text(json.dumps(foreign))
    refused(run.read_config, "format None", path)


def test_a_list_for_a_config_is_refused(run):
    path = run.path / "config.json"
    path.write_text("[]")
    refused(run.read_config, "JSON.* list", path)


@pytest.mark.parametrize("key", CONFIG)
def test_a_config_without_its_main_parts_is_refused(run, key):
    path = run.path / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    refused(run.read_config, rf" {key}\b.*damaged", path)


@pytest.mark.parametrize("data", [["pictures"], "pictures", 3])
def test_a_config_with_invalid_data_is_refused(run, data):
    path = run.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": data}))
    refused(run.read_config, r" invalid data;.*damaged", path)


def test_a_folder_of_seeds_names_its_runs(tmp_path):
    (tmp_path / "seeds.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="seed-N"):
        RunFolder(tmp_path).read_config()


# ---- prompts and state -----------------------------------------------------------------------


def test_prompts_round_trip(run):
    tokens = torch.randn(4, 8)
    run.write_prompts({"tokens": tokens}, "advpt", "me")
    assert torch.equal(run.read_prompts("advpt", "me")["tokens"], tokens)


def test_prompts_of_another_method_are_refused(run):
    run.write_prompts({"tokens": torch.zeros(1)}, "advpt", "me")
    path = run.path / "prompts.safetensors"
    refused(lambda: run.read_prompts("other", "me"), "'advpt'.*'other'", path)


def test_prompts_that_are_not_there_are_missing(run):
    path = run.path / "prompts.safetensors"
    refused(lambda: run.read_prompts("advpt", "me"), path.name, path, FileNotFoundError)


def test_prompts_of_a_run_with_other_settings(run):
    run.write_prompts({"tokens": torch.zeros(1)}, "advpt", "me")
    refused(lambda: run.read_prompts("advpt", "other"), r"prompts.* config\.json", run.path)


def test_state_round_trip(run):
    assert run.read_state("key") is None
    run.write_state({"a": torch.ones(2)}, 7, "key")
    tensors, epoch = run.read_state("key")
    assert epoch == 7
    assert torch.equal(tensors["a"], torch.ones(2))
    run.write_state({"a": torch.zeros(2)}, 8, "key")
    assert run.read_state("key")[1] == 8


def test_state_of_another_run_is_refused(run):
    run.write_state({"a": torch.ones(2)}, 7, "key")
    path = run.path / "state.safetensors"
    refused(lambda: run.read_state("other"), "settings.* data", path)


def test_prompts_are_no_state_and_a_state_no_prompts(run):
    run.write_state({"a": torch.ones(2)}, 1, "key")
    run.write_prompts({"a": torch.ones(2)}, "advpt", "me")
    prompts, state = run.path / "prompts.safetensors", run.path / "state.safetensors"
    old = prompts.read_bytes()
    prompts.write_bytes(state.read_bytes())
    state.write_bytes(old)
    refused(lambda: run.read_prompts("advpt", "me"), "'prompts'.*'state'", prompts)
    refused(lambda: run.read_state("key"), "'state'.*'prompts'", state)


# ---- metrics.jsonl ---------------------------------------------------------------------------

ROWS = [{"epoch": e, "loss": 1 / e, "lr": 1e-5, "seconds": 0.1} for e in (1, 2, 3)]


@pytest.fixture
def metrics(run):
    for row in ROWS:
        run.append_metrics(row)
    return run.path / "metrics.jsonl"


def test_metrics_come_back_in_order(run, metrics):
    assert run.read_metrics() == ROWS
    assert metrics.read_text().count("\n") == 3


def test_no_metrics_are_none(run):
    assert run.read_metrics() == []
    run.cut_metrics(0)
    assert run.read_metrics() == []


def test_a_line_cut_anywhere_is_left_out(run, metrics):
    whole = metrics.read_bytes()
    last = len(json.dumps(ROWS[2])) + 1
    for missing in range(2, last + 1):
        metrics.write_bytes(whole[:-missing])
        assert run.read_metrics() == ROWS[:2]
    metrics.write_bytes(whole[:-1])  # only the end of the line is missing
    assert run.read_metrics() == ROWS


@pytest.mark.parametrize("rest", [b"\0\0\0\0", b"\xff\xfe{", b"3", b"[1, 2]", b"null\n", b'"a"'])
def test_rubbish_behind_the_last_whole_line_is_left_out(run, metrics, rest):
    metrics.write_bytes(metrics.read_bytes() + rest)
    assert run.read_metrics() == ROWS


@pytest.mark.parametrize("damaged", ['{"epo', '{"foo": 1}'])
def test_whole_lines_behind_a_damaged_one_are_kept(run, metrics, damaged):
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], damaged, lines[2]]) + "\n")
    assert run.read_metrics() == [ROWS[0], ROWS[2]]
    assert run.cut_metrics(4) == [2, 4]
    assert metrics.read_text().splitlines() == [lines[0], lines[2]]


@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("missing", [0, 1, 5])
def test_cutting_leaves_whole_lines_of_the_first_epochs_only(run, metrics, epochs, missing):
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[: len(whole) - missing])
    kept = ROWS[: min(epochs, 2 if missing > 1 else 3)]
    missing = run.cut_metrics(epochs)
    assert missing == list(range(len(kept) + 1, epochs + 1))
    assert metrics.read_text() == "".join(json.dumps(row) + "\n" for row in kept)
    run.append_metrics({"epoch": 99})
    assert run.read_metrics() == [*kept, {"epoch": 99}]


@pytest.mark.parametrize(
    "change", [{"clip": "x"}, {"clip": {}}, {"config": None}, {"classnames": "abc"}]
)
def test_parts_of_a_wrong_type_are_damage(run, change):
    parts = {"method": "m", "config": {}, "classnames": ["a"]}
    clip = {"name": "n", "source": None, "fingerprint": "f"}
    run.write_config({**parts, "clip": clip} | change)
    with pytest.raises(ValueError, match=rf" {next(iter(change))}\b.*damaged"):
        run.read_config()
