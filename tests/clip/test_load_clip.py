import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.models import SMALL, small_model
from open_clip import factory
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from fastprompt import FrozenCLIP, load_clip
from fastprompt.clip.image_weights import load_image_weights
from fastprompt.clip.load import quick_gelu

NAME = "ViT-small-48"  # registered for these tests alone
CONFIG = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "context_length": 20}}


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """open_clip knows the model ``NAME`` until the test is over."""
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    path = tmp_path / "configs" / f"{NAME}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    return path


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(5)
    return open_clip.CLIP(**copy.deepcopy(CONFIG)).eval()


def write(state: Mapping[str, object], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save(dict(state), path)
    return path


def same(first: object, second: object) -> bool:
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


class Trap:
    """Unpickling makes the folder ``path``: code that must never run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


# ---- names -------------------------------------------------------------------------------------


def test_an_unknown_model_offers_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"model.*'ViT-B-17'.*'ViT-B-16'"):
        load_clip("ViT-B-17", "openai")


def test_missing_pretrained_offers_tags() -> None:
    with pytest.raises(ValueError, match=r"^pretrained .*ViT-B-16 .*openai"):
        load_clip("ViT-B-16")


def test_an_unknown_tag_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"ViT-B-16 .*'opena'.*'openai'"):
        load_clip("ViT-B-16", "opena")


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("missing", ["nowhere.pt", "nowhere.safetensors", "nowhere", ""])
def test_a_checkpoint_that_is_not_there(tmp_path: Path, missing: str, kind: type) -> None:
    with pytest.raises(FileNotFoundError, match=f"^pretrained.*{missing}"):
        load_clip("ViT-B-16", kind(tmp_path / missing))


@pytest.mark.parametrize("wrong", [3, None, {"model": "ViT-B-16"}])
def test_other_things_than_names_and_models_are_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=f"^model .*open_clip.* {type(wrong).__name__}"):
        load_clip(wrong)


def test_a_module_that_is_no_clip_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^model .*Linear.* visual, encode_image, encode_text"):
        load_clip(nn.Linear(2, 2))


def test_a_model_object_takes_no_pretrained() -> None:
    with pytest.raises(ValueError, match=r"^pretrained .*model name"):
        load_clip(small_model(), "openai")


def test_quick_gelu_follows_the_tag() -> None:
    assert quick_gelu("ViT-B-16", "openai") is True
    assert quick_gelu("ViT-B/16", "openai") is True
    assert quick_gelu("ViT-B-16", "laion2b_s34b_b88k") is False
    assert quick_gelu("ViT-B-16", "weights.pt") is False
    assert quick_gelu("ViT-B-16", None) is False
    assert quick_gelu("hf-hub:someone/some-model", "openai") is False


@pytest.mark.parametrize(("quick", "activation"), [(True, QuickGELU), (False, nn.GELU)])
def test_a_tags_activation_is_put_into_both_towers(
    config_file: Path,
    model: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: bool,
    activation: type,
) -> None:
    tag = {"url": "https://example.org/x.pt", "quick_gelu": quick, "mean": (0.1, 0.2, 0.3)}
    file = write(model.state_dict(), tmp_path / "downloaded.pt")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"mine": tag})
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(file))
    clip = load_clip(NAME, "mine")
    for tower in (clip.model.visual.transformer, clip.model.transformer):
        assert [type(block.mlp.gelu) for block in tower.resblocks] == [activation] * 2
    assert clip.name == f"{NAME}:mine"
    torch.testing.assert_close(clip.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_file_round_trips(
    config_file: Path, model: nn.Module, tmp_path: Path, suffix: str, kind: type
) -> None:
    file = write(model.state_dict(), tmp_path / f"weights{suffix}")
    clip = load_clip(NAME, kind(file))
    assert same(clip.model.state_dict(), model.state_dict())
    assert clip.fingerprint == load_clip(model).fingerprint
    assert clip.source == {"model": NAME, "pretrained": str(file)}
    assert load_clip(**clip.source).fingerprint == clip.fingerprint
    assert not any(p.requires_grad for p in clip.parameters())


def test_another_image_size_interpolates_the_positions(
    config_file: Path, model: nn.Module, tmp_path: Path
) -> None:
    path = write(model.state_dict(), tmp_path / "model.pt")
    plain, large = (load_clip(NAME, path, image_size=s) for s in (None, (64, 80)))
    assert (plain.image_size, large.image_size) == (48, (64, 80))
    assert large.name == f"{NAME}:{path} at 64x80"
    assert large.source == {**plain.source, "image_size": (64, 80)}
    assert large.fingerprint != plain.fingerprint
    source = json.loads(json.dumps(large.source))
    again = load_clip(source.pop("model"), **source)
    assert again.fingerprint == large.fingerprint
    own, found = (c.model.visual.positional_embedding for c in (plain, large))
    assert torch.equal(own[0], found[0])
    grid = own[1:].T.reshape(1, -1, 3, 3)
    wanted = nn.functional.interpolate(grid, (4, 5), mode="bicubic", antialias=True)
    torch.testing.assert_close(found[1:], wanted[0].flatten(1).T)
    assert not large.why_no_visual_prompts()


def test_the_bundled_model_and_image_weights_take_another_image_size() -> None:
    small, large = (load_clip("tiny-shapes", image_size=s) for s in (None, 64))
    visual = small.model.visual.state_dict()
    again = load_clip("tiny-shapes", image_size=64, image_weights=visual)
    assert again.fingerprint == large.fingerprint != small.fingerprint


@pytest.mark.parametrize(
    ("size", "message"), [(0, "at least 1"), (50, "multiple .* 8.*50"), ((48,), "height, width")]
)
def test_an_image_size_that_does_not_fit_is_told(size: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^image_size .*{message}"):
        load_clip("tiny-shapes", image_size=size)


def test_a_model_object_takes_no_image_size(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^image_size must be None .*64"):
        load_clip(model, image_size=64)


def test_a_slash_in_the_name_changes_nothing(
    config_file: Path, model: nn.Module, tmp_path: Path
) -> None:
    file = write(model.state_dict(), tmp_path / "weights.pt")
    plain, slash = load_clip(NAME, file), load_clip(NAME.replace("-", "/", 1), file)
    assert slash.tokenizer(["a cat"]).shape == (1, 20)
    assert torch.equal(slash.encode_text(["a cat"]), plain.encode_text(["a cat"]))


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_checkpoint_is_told(
    config_file: Path, model: nn.Module, tmp_path: Path, suffix: str, keep: float
) -> None:
    file = write(model.state_dict(), tmp_path / f"weights{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"^pretrained.*weights{suffix}.*damaged"):
        load_clip(NAME, file)


@pytest.mark.parametrize("content", [[1, 2], {}, torch.ones(3), {"state_dict": 1}, {"epoch": 3}])
def test_a_checkpoint_without_a_state_dict_is_told(
    config_file: Path, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"^pretrained.*odd\.pt.*damaged"):
        load_clip(NAME, tmp_path / "odd.pt")


def test_a_text_file_as_a_checkpoint_is_told(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"^pretrained.*notes\.pt.*damaged"):
        load_clip(NAME, tmp_path / "notes.pt")


def test_another_models_checkpoint_is_told(config_file: Path, tmp_path: Path) -> None:
    file = write(small_model(width=32).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"^pretrained.*other\.pt.* ViT-small-48"):
        load_clip(NAME, file)


@pytest.mark.parametrize(
    "load",
    [
        lambda file: load_clip(NAME, file),
        lambda file: load_clip(small_model(), image_weights=file),
    ],
    ids=["pretrained", "image_weights"],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(
    config_file: Path, model: nn.Module, tmp_path: Path, load: Callable[[Path], FrozenCLIP]
) -> None:
    trapped = tmp_path / "the code ran"
    file = write({**model.state_dict(), "zz": Trap(trapped)}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"^(pretrained|image_weights).*trap\.pt.* never"):
        load(file)
    assert not trapped.exists()
    torch.load(file, weights_only=False)
    assert trapped.exists(), "the trap itself does not work"


# ---- local folders and downloads ---------------------------------------------------------------


@pytest.fixture
def local_dir(tmp_path: Path, model: nn.Module) -> Path:
    folder = tmp_path / "local"
    folder.mkdir()
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    content = {"model_cfg": CONFIG, "preprocess_cfg": own}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_a_local_folder_is_loaded(local_dir: Path, model: nn.Module) -> None:
    clip = load_clip(f"local-dir:{local_dir}")
    assert same(clip.model.state_dict(), model.state_dict())
    torch.testing.assert_close(clip.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(clip.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert clip.tokenizer(["a cat"]).shape == (1, 20)
    assert load_clip(**clip.source).fingerprint == clip.fingerprint


def test_a_local_folder_takes_no_pretrained(local_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"^pretrained .*local-dir:"):
        load_clip(f"local-dir:{local_dir}", "openai")


def test_a_local_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"local-dir:.*nowhere"):
        load_clip(f"local-dir:{tmp_path / 'nowhere'}")


def test_a_local_folder_without_weights(local_dir: Path) -> None:
    (local_dir / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^model: local-dir:.*"):
        load_clip(f"local-dir:{local_dir}")


def test_a_local_folder_with_damaged_weights(local_dir: Path) -> None:
    file = local_dir / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"^pretrained.*local-dir:.*damaged"):
        load_clip(f"local-dir:{local_dir}")


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (("ViT-B-16", "openai"), "download_pretrained"),
        (("hf-hub:someone/some-model",), "download_pretrained_from_hf"),
    ],
)
def test_a_failed_download_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], function: str
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(factory, function, no_network)
    with pytest.raises(RuntimeError, match=r"no route to host.*checkpoint.* pretrained"):
        load_clip(*arguments)


# ---- tokenizers and normalization --------------------------------------------------------------


@pytest.mark.parametrize("layout", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_an_odd_vocabulary_needs_its_tokenizer(layout: type) -> None:
    model = small_model(layout, vocab_size=300)
    with pytest.raises(ValueError, match=r"^tokenizer .* 300 .*get_tokenizer\(name\)"):
        load_clip(model)
    tokens = torch.tensor([1, 299] + [0] * 75)
    clip = load_clip(model, tokenizer=lambda texts: tokens.expand(len(texts), -1))
    assert clip.encode_text(["a", "b"]).shape == (2, 16)


def test_the_standard_tokenizer_has_the_models_length(model: nn.Module) -> None:
    assert load_clip(model).tokenizer(["a cat"]).shape == (1, 20)


def test_a_model_with_its_own_tokenizer_does_not_claim_to_be_reloadable(
    config_file: Path, model: nn.Module, tmp_path: Path
) -> None:
    file = write(model.state_dict(), tmp_path / "weights.pt")
    shouting = open_clip.SimpleTokenizer(context_length=20, clean="whitespace")
    assert load_clip(NAME, file, tokenizer=shouting).source is None


def test_models_share_the_tables_of_the_standard_tokenizer():
    """The tables take 22 MB and 0.1 s; the settings belong to each model."""
    first, second = load_clip(small_model()), load_clip(small_model(context_length=20))
    assert first.tokenizer.encoder is second.tokenizer.encoder
    assert first.tokenizer is not second.tokenizer
    assert first.tokenizer(["a"]).shape == (1, 77)
    assert second.tokenizer(["a"]).shape == (1, 20)


@pytest.mark.parametrize("argument", ["mean", "std"])
@pytest.mark.parametrize("values", [(), (0.5,), (0.5, 0.5), (0.5,) * 4])
def test_normalization_takes_three_values(argument: str, values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{argument} .*3 values"):
        load_clip(small_model(), **{argument: values})


@pytest.mark.parametrize("std", [(0.5, 0.0, 0.5), (0.5, -1.0, 0.5), (0.5, float("nan"), 0.5)])
def test_std_must_be_positive(std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^std .*(positive|finite)"):
        load_clip(small_model(), std=std)


def test_the_standard_normalization_is_openais() -> None:
    clip = load_clip(small_model())
    torch.testing.assert_close(clip.mean.flatten(), torch.tensor(open_clip.OPENAI_DATASET_MEAN))
    torch.testing.assert_close(clip.std.flatten(), torch.tensor(open_clip.OPENAI_DATASET_STD))


def test_normalization_may_be_a_tensor_and_is_kept_in_the_source(
    config_file: Path, model: nn.Module, tmp_path: Path
) -> None:
    file = write(model.state_dict(), tmp_path / "weights.pt")
    values = torch.tensor([0.25, 0.5, 0.75])
    assert torch.equal(load_clip(model, mean=values).mean.flatten(), values)
    clip = load_clip(NAME, file, std=[0.25, 0.5, 0.75])
    assert torch.equal(clip.std.flatten(), values)
    assert load_clip(**clip.source).fingerprint == clip.fingerprint


def test_a_frozen_clip_is_handed_back(small_clip: FrozenCLIP) -> None:
    assert load_clip(small_clip) is small_clip
    with pytest.raises(ValueError, match=r"^model .*FrozenCLIP.* mean, std"):
        load_clip(small_clip, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ValueError, match=r"^model .*FrozenCLIP.* image_weights"):
        load_clip(small_clip, image_weights="somewhere.pt")


# ---- image towers ------------------------------------------------------------------------------


def tecoa(donor: nn.Module) -> dict[str, object]:
    tower = {f"module.{k}": v for k, v in donor.visual.state_dict().items()}
    return {
        "epoch": 9,
        "best_acc1": torch.tensor(61.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]},
        "vision_encoder_state_dict": tower,
    }


VISUAL_BLOCK = "visual.transformer.resblocks.1.ln_2.weight"

IMAGE_LAYOUTS = {
    "FARE": lambda donor: donor.visual.state_dict(),
    "TeCoA": tecoa,
    "whole CLIP": lambda donor: donor.state_dict(),
    "whole CLIP, wrapped": lambda donor: {
        "state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}
    },
    "under model": lambda donor: {"model": donor.visual.state_dict(), "args": {"lr": 1}},
    "model.visual": lambda donor: {
        f"model.visual.{k}": v for k, v in donor.visual.state_dict().items()
    },
    "image_encoder": lambda donor: {
        f"image_encoder.{k}": v for k, v in donor.visual.state_dict().items()
    },
}


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_an_image_tower_is_taken_from_any_layout(
    tmp_path: Path, layout: str, as_file: bool
) -> None:
    # text and image blocks of one shape: the wrong ones would load without complaint
    base, donor = small_model(width=32, seed=0), small_model(width=32, seed=1)
    content = IMAGE_LAYOUTS[layout](donor)
    kept = copy.deepcopy(content)
    clip = load_clip(
        base, image_weights=write(content, tmp_path / "tower.pt") if as_file else content
    )
    assert same(clip.model.visual.state_dict(), donor.visual.state_dict())
    text = {k: v for k, v in clip.model.state_dict().items() if not k.startswith("visual.")}
    assert same(text, {k: v for k, v in base.state_dict().items() if k in text})
    assert same(content, kept)
    assert not same(base.visual.state_dict(), donor.visual.state_dict())


def test_the_handed_in_tensors_are_not_shared(images: Tensor) -> None:
    donor = small_model(seed=1)
    weights = donor.visual.state_dict()
    clip = load_clip(small_model(), image_weights=weights)
    before = clip.encode_image(images)
    for tensor in weights.values():
        tensor.zero_()
    assert torch.equal(clip.encode_image(images), before)


def test_an_image_tower_in_safetensors(tmp_path: Path, images: Tensor) -> None:
    donor = small_model(seed=1)
    file = write(donor.visual.state_dict(), tmp_path / "tower.safetensors")
    features = load_clip(small_model(), image_weights=file).encode_image(images)
    assert torch.equal(features, load_clip(donor).encode_image(images))


def test_image_weights_from_a_file_are_kept_in_the_source(
    config_file: Path, model: nn.Module, tmp_path: Path
) -> None:
    checkpoint = write(model.state_dict(), tmp_path / "weights.pt")
    donor = small_model(seed=1).visual.state_dict()
    tower = write(donor, tmp_path / "tower.pt")
    clip = load_clip(NAME, checkpoint, image_weights=tower)
    assert load_clip(**clip.source).fingerprint == clip.fingerprint
    assert clip.fingerprint != load_clip(NAME, checkpoint).fingerprint
    assert load_clip(NAME, checkpoint, image_weights=donor).source is None


def test_a_tower_of_another_width_is_told(tmp_path: Path) -> None:
    config = copy.deepcopy(SMALL)
    config["vision_cfg"]["width"] = 64
    file = write(open_clip.CLIP(**config).visual.state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"wide\.pt.* \[.*64.* \[.*32"):
        load_clip(small_model(), image_weights=file)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"epoch": 3},
        {k: v for k, v in small_model().visual.state_dict().items() if k != "proj"},
        {**small_model().visual.state_dict(), "proj": "a string"},
        {k: v for k, v in small_model(width=32).state_dict().items() if "visual" not in k},
        {k: v for k, v in small_model(width=32).state_dict().items() if k != VISUAL_BLOCK},
    ],
    ids=["empty", "no tensors", "one missing", "one no tensor", "text alone", "only in text"],
)
def test_missing_tensors_are_told(weights: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^image_weights.*\d+ of 32"):
        load_clip(small_model(), image_weights=weights)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip file", "cut"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_tower_is_told(tmp_path: Path, content: bytes | str, suffix: str) -> None:
    file = write(small_model().visual.state_dict(), tmp_path / f"tower{suffix}")
    file.write_bytes(file.read_bytes()[:5000] if content == "cut" else content)
    with pytest.raises(ValueError, match=rf"^image_weights.*tower{suffix} .*damaged: ."):
        load_clip(small_model(), image_weights=file)


def test_a_tower_file_without_a_mapping_is_told(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"^image_weights.*list\.pt .*list\b"):
        load_clip(small_model(), image_weights=tmp_path / "list.pt")


def test_a_tower_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^image_weights.*nowhere\.pt"):
        load_clip(small_model(), image_weights=tmp_path / "nowhere.pt")


def test_nothing_is_loaded_from_a_tower_that_does_not_fit() -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    tower = small_model(seed=1).visual.state_dict()
    tower["proj"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"^image_weights.*proj .*\[1\]"):
        load_image_weights(model, tower)
    assert same(model.state_dict(), before)


def test_a_deeper_tower_is_refused():
    deeper = copy.deepcopy(SMALL)
    deeper["vision_cfg"]["layers"] = 3
    state = open_clip.CLIP(**deeper).visual.state_dict()
    with pytest.raises(ValueError, match=r"^image_weights.*transformer\.resblocks\.2"):
        load_clip(small_model(), image_weights=state)


def test_a_numpy_accuracy_beside_the_weights_is_read(tmp_path):
    model = small_model(seed=3)
    path = tmp_path / "tecoa.pth.tar"
    accuracy = np.float64(61.25)
    torch.save({"vision_encoder_state_dict": model.visual.state_dict(), "best": accuracy}, path)
    clip = load_clip(small_model(), image_weights=path)
    assert torch.equal(clip.model.visual.proj, model.visual.proj)


def test_without_a_network_the_remedy_names_the_right_activation(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(factory, "download_pretrained", offline)
    with pytest.raises(RuntimeError, match="ViT-B-16-quickgelu"):
        load_clip("ViT-B-16", "openai")
