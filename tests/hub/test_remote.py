"""The Hugging Face Hub, whose few calls a server on this machine answers."""

import huggingface_hub
import pytest
import torch
from helpers.hub_server import TOKEN, in_its_place
from helpers.models import small_model

from fastprompt import APTTuner, AutoTuner, evaluate, load_data
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.hub import remote

NAMES = ["red", "green", "blue"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    with in_its_place(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def tuner(hub):
    tuner = APTTuner("tiny-shapes", NAMES, n_ctx=2)
    with torch.no_grad():
        tuner.prompts.tokens.normal_()
    return tuner


def pixels():
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def test_what_is_pushed_is_loaded_and_comes_from_the_cache(hub, tuner, monkeypatch):
    address = tuner.push_to_hub("org/run", token=TOKEN)
    assert address == f"{hub.url}/org/run"
    ((files,)) = hub.commits["org/run"]
    assert sorted(files) == ["README.md", "prompt_config.json", "prompts.safetensors"]
    assert b'from_pretrained("org/run")' in files["README.md"]
    first = hub.sha("org/run", 0)
    again = AutoTuner.from_pretrained("org/run")
    assert torch.equal(again.classifier(pixels()), tuner.classifier(pixels()))

    # a second version; the first stays reachable by its commit
    with torch.no_grad():
        tuner.prompts.tokens.mul_(-1)
    tuner.push_to_hub("org/run", token=TOKEN, message="again")
    second = AutoTuner.from_pretrained("org/run")
    assert torch.equal(second.prompts.tokens, tuner.prompts.tokens)
    old = APTTuner.from_pretrained("org/run", revision=first)
    assert torch.equal(old.prompts.tokens, again.prompts.tokens)

    hub.asked.clear()
    AutoTuner.from_pretrained("org/run")
    assert not [path for method, path in hub.asked if method == "GET" and "resolve" in path]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert torch.equal(
        AutoTuner.from_pretrained("org/run", local_files_only=True).prompts.tokens,
        second.prompts.tokens,
    )
    assert not hub.asked


def test_private_repositories_need_the_token(hub, tuner):
    tuner.push_to_hub("org/secret", token=TOKEN, private=True)
    with pytest.raises(PermissionError, match=r"org/secret .*private.*hf auth login"):
        AutoTuner.from_pretrained("org/secret")
    assert AutoTuner.from_pretrained("org/secret", token=TOKEN).method == "apt"


def test_what_is_not_there(hub, tuner):
    with pytest.raises(PermissionError, match=r"org/none .*does not exist or is private"):
        AutoTuner.from_pretrained("org/none")
    with pytest.raises(FileNotFoundError, match=r"org/none .*does not exist, or your token"):
        AutoTuner.from_pretrained("org/none", token=TOKEN)
    tuner.push_to_hub("org/run", token=TOKEN)
    with pytest.raises(FileNotFoundError, match=r"revision: org/run .*'v7'"):
        AutoTuner.from_pretrained("org/run", revision="v7")
    hub.commits["org/bert"] = [{"README.md": b"", "pytorch_model.bin": b"pickle"}]
    with pytest.raises(FileNotFoundError, match=r"org/bert .*no prompt_config\.json"):
        AutoTuner.from_pretrained("org/bert")
    assert not [path for _, path in hub.asked if path.endswith(".bin")]


def test_names_that_are_no_repository(hub, tmp_path):
    for name in ("none", "./none", "/a/b", "org/run/more", "../run", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            AutoTuner.from_pretrained(name)
    with pytest.raises(ValueError, match="revision is for repositories"):
        AutoTuner.from_pretrained(tmp_path, revision="main")
    assert not hub.asked


def test_offline(hub, tuner, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"org/run: .*HF_HUB_OFFLINE.*cache"):
        AutoTuner.from_pretrained("org/run")
    with pytest.raises(ConnectionError, match="cache"):
        AutoTuner.from_pretrained("org/run", local_files_only=True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        tuner.push_to_hub("org/run", token=TOKEN)


def test_nobody_answers(hub, tuner, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"org/run: the Hub cannot be reached"):
        AutoTuner.from_pretrained("org/run")
    with pytest.raises(ConnectionError, match=r"org/run: the Hub cannot be reached"):
        tuner.push_to_hub("org/run", token=TOKEN)


def test_a_push_without_a_token(hub, tuner):
    with pytest.raises(PermissionError, match=r"org/run.*hf auth login"):
        tuner.push_to_hub("org/run")
    with pytest.raises(ValueError, match=r"^repo .*org/run"):
        tuner.push_to_hub("run", token=TOKEN)
    assert not hub.commits


def test_the_command(hub, tuner, tmp_path, monkeypatch, capsys):
    run = tuner.save(tmp_path / "run")
    assert main(["push", str(run), "org/run"]) == 2
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(run), "org/run", "--private", "true"]) == 0
    assert f"uploaded: {hub.url}/org/run" in capsys.readouterr().out
    assert "org/run" in hub.private
    assert set(hub.commits["org/run"][0]) <= set(remote.FILES)


def test_a_push_without_a_result_leaves_none_of_other_prompts(hub):
    data = load_data("patterns", shots=1)
    tuner = APTTuner("tiny-shapes", data.classnames, n_ctx=2)
    result = evaluate(tuner.classifier, data.test, ["clean"], limit=3, progress=False)
    tuner.push_to_hub("org/run", token=TOKEN, result=result)
    assert "result.json" in hub.commits["org/run"][-1]
    tuner.push_to_hub("org/run", token=TOKEN)
    files = hub.commits["org/run"][-1]
    assert sorted(files) == ["README.md", "prompt_config.json", "prompts.safetensors"]
    assert b"without an evaluation" in files["README.md"]
