"""`load_clip("org/name", source="transformers")`, from a server in the place of the Hub."""

import json

import huggingface_hub
import open_clip
import pytest
import torch
from helpers.hub_server import in_its_place
from helpers.transformers_clips import their_folder
from safetensors.torch import load

from fastprompt import APTTuner, load_clip
from fastprompt.cli.main import main

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = their_folder(tmp_path_factory.mktemp("theirs"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    with in_its_place(monkeypatch, tmp_path) as server:
        server.commits["org/clip"] = [files]
        yield server


def test_a_repository_is_loaded_once_then_from_the_cache(hub, files, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    here = load_clip(folder, source="transformers")
    there = load_clip("org/clip", source="transformers")
    assert there.name == "org/clip"
    assert there.fingerprint == here.fingerprint
    assert there.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert there.preprocess == here.preprocess
    assert torch.equal(there.tokenizer(["a cat"]), here.tokenizer(["a cat"]))

    # a run names it and loads it again; nothing is downloaded twice, nor needed once it is there
    saved = APTTuner(there, ["cat", "dog"], n_ctx=2).save(tmp_path / "run")
    hub.asked.clear()
    assert APTTuner.load(saved).clip.fingerprint == here.fingerprint
    assert not [path for _, path in hub.asked if "resolve" in path]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOBODY)
    assert APTTuner.load(saved).clip.fingerprint == here.fingerprint
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert APTTuner.load(saved).clip.fingerprint == here.fingerprint


def test_weights_of_torch_are_downloaded_only_where_there_are_no_others(hub, files, tmp_path):
    state = load(files["model.safetensors"])
    torch.save(state, tmp_path / "weights.bin")
    pickled = (tmp_path / "weights.bin").read_bytes()
    others = {k: v for k, v in files.items() if k != "model.safetensors"}
    both = {"pytorch_model.bin": pickled, "flax_model.msgpack": b"x", "onnx/model.onnx": b"x"}
    hub.commits["org/old"] = [others | {"pytorch_model.bin": pickled}]
    hub.commits["org/both"] = [files | both]
    old = load_clip("org/old", source="transformers", cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere").is_dir()
    assert load_clip("org/both", source="transformers").fingerprint == old.fingerprint
    asked = {path for _, path in hub.asked if "org/both/resolve" in path}
    assert any(path.endswith("model.safetensors") for path in asked)
    assert not [p for p in asked if p.endswith((".bin", ".msgpack", ".onnx"))]


def test_another_kind_of_model_is_refused_before_its_weights_are_downloaded(hub, files):
    config = json.dumps({**json.loads(files["config.json"]), "model_type": "siglip"}).encode()
    hub.commits["org/siglip"] = [files | {"config.json": config}]
    with pytest.raises(ValueError, match=r"org/siglip .*'siglip'"):
        load_clip("org/siglip", source="transformers")
    assert not [path for _, path in hub.asked if path.endswith(".safetensors")]


def test_a_repository_without_preprocessing_or_tokenizer(hub, files):
    hub.commits["org/bare"] = [{k: files[k] for k in ("config.json", "model.safetensors")}]
    clip = load_clip("org/bare", source="transformers")
    assert clip.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert isinstance(clip.tokenizer, open_clip.SimpleTokenizer)


def test_what_is_not_there(hub, monkeypatch):
    with pytest.raises(PermissionError, match=r"org/none .*does not exist or is private: check"):
        load_clip("org/none", source="transformers")
    hub.commits["org/run"] = [{"README.md": b"", "prompt_config.json": b"{}"}]
    with pytest.raises(FileNotFoundError, match=r"model: org/run has no config\.json"):
        load_clip("org/run", source="transformers")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOBODY)
    with pytest.raises(ConnectionError, match=r"org/clip: the Hub cannot be reached .*a folder"):
        load_clip("org/clip", source="transformers")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"org/clip: .*HF_HUB_OFFLINE.*cache"):
        load_clip("org/clip", source="transformers")


def test_the_command_line_names_it(hub, capsys):
    assert main(["tune", "apt", "--clip", "transformers:org/none"]) == 2
    assert "org/none on the Hub does not exist" in capsys.readouterr().err
