"""`load_clip(..., source="transformers")`: the same features as the `CLIPModel`."""

import copy
import json

import open_clip
import pytest
import torch
import transformers
from helpers.engine_checks import EXACT, SINGLE, relative
from helpers.transformers_clips import EOS, their_clip, their_folder, their_tokenizer

from fastprompt import APTTuner, load_clip
from fastprompt.clip.from_transformers import pooled

TEXTS = ["a photo of a cat.", "Two  Dogs and the very long tail of a bird!", "émile's 1,000 pixels"]


def compared(theirs, clip, tokens, dtype):
    """Norm-relative differences of image and text features, with the pixels normalized outside."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 3, 48, 48, generator=generator, dtype=dtype)
    with torch.no_grad():
        image = pooled(theirs.get_image_features(pixel_values=(pixels - clip.mean) / clip.std))
        text = pooled(theirs.get_text_features(input_ids=tokens))
    return relative(clip.encode_image(pixels), image), relative(clip.encode_text(TEXTS), text)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [2, EOS])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, SINGLE), (torch.float64, EXACT)])
def test_the_features_are_those_of_transformers(act, eos, dtype, limit):
    theirs = their_clip(act, eos, {"layer_norm_eps": 1e-3}).to(dtype)
    clip = load_clip(theirs, source="transformers")
    tokens = clip.tokenizer(TEXTS)
    assert max(compared(theirs, clip, tokens, dtype)) < limit
    assert clip.dtype == dtype
    assert not clip.why_no_text_prompts()
    assert not clip.why_no_visual_prompts()


def test_the_model_is_not_altered():
    theirs = their_clip().half().train()
    state = copy.deepcopy(theirs.state_dict())
    clip = load_clip(theirs, source="transformers")
    assert clip.dtype == torch.float32
    assert theirs.training
    assert all(p.requires_grad and p.dtype == torch.float16 for p in theirs.parameters())
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("eos", [2, EOS])
def test_a_folder_brings_its_tokenizer_and_normalization(tmp_path, eos):
    folder = their_folder(tmp_path / "model", eos=eos)
    clip = load_clip(str(folder), source="transformers")
    theirs = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32)
    tokens = their_tokenizer()(TEXTS, padding=True, return_tensors="pt").input_ids
    assert max(compared(theirs, clip, tokens, torch.float32)) < SINGLE
    assert clip.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert clip.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert clip.preprocess == {"resize_mode": "shortest", "interpolation": "bilinear"}
    assert clip.context_length == 77
    # another end token and another padding, the same classes
    ours, plain = clip.tokenizer(TEXTS), open_clip.SimpleTokenizer()(TEXTS)
    assert torch.equal(torch.where(ours == EOS, 0, ours), torch.where(plain == EOS, 0, plain))


def test_what_a_processor_saves_is_used_too(tmp_path):
    """One file of settings in version 5 of transformers, two before."""
    folder = their_folder(tmp_path / "model")
    images = transformers.CLIPImageProcessor.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    transformers.CLIPProcessor(images, their_tokenizer()).save_pretrained(folder)
    clip = load_clip(folder, source="transformers")
    assert clip.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert clip.preprocess["interpolation"] == "bilinear"
    (folder / "processor_config.json").write_text('{"image_processor": [1]}')
    with pytest.raises(ValueError, match=r"^model: .*processor_config.json .*image_processor"):
        load_clip(folder, source="transformers")


def test_a_run_is_loaded_again(tmp_path):
    folder = their_folder(tmp_path / "model")
    clip = load_clip(folder, source="transformers")
    tuner = APTTuner(clip, ["cat", "dog"], n_ctx=2)
    loaded = APTTuner.load(tuner.save(tmp_path / "run"))
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(loaded.classifier(images), tuner.classifier(images))


def test_a_shorter_context(tmp_path):
    theirs = their_clip(text={"max_position_embeddings": 20})
    clip = load_clip(theirs, source="transformers", tokenizer=their_tokenizer())
    assert clip.tokenizer(["cat"]).shape == (1, 20)
    assert clip.zero_shot(["cat", "dog"])(torch.rand(1, 3, 48, 48)).shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act": "relu"}, "activation is 'relu'"),
        ({"vision": {"hidden_act": "gelu"}}, "two activations"),
        ({"vision": {"num_channels": 1}}, "1 channels"),
        ({"text": {"vocab_size": 100}, "eos": 99}, "tokenizer is required"),
        ({"eos": 5}, "end token"),
    ],
)
def test_what_open_clip_lacks_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        load_clip(their_clip(**options), source="transformers")


def test_what_a_model_computes_besides_is_refused():
    theirs = their_clip()
    theirs.vision_model.encoder.layers[0].register_forward_hook(lambda m, i, out: out * 1.1)
    with pytest.raises(ValueError, match="image features differ"):
        load_clip(theirs, source="transformers")
    theirs = their_clip()
    theirs.text_model.encoder.layers[0].mlp.fc1.bias = None
    with pytest.raises(ValueError, match=r"no tensor text_model.encoder.layers.0.mlp.fc1.bias"):
        load_clip(theirs, source="transformers")
    theirs = their_clip()
    theirs.register_parameter("adapter", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="its tensor adapter is not understood"):
        load_clip(theirs, source="transformers")


def test_what_is_no_clip_of_transformers(tmp_path):
    with pytest.raises(TypeError, match="pass source='transformers'"):
        load_clip(their_clip())
    with pytest.raises(TypeError, match="got Linear"):
        load_clip(torch.nn.Linear(2, 2), source="transformers")
    with pytest.raises(ValueError, match="pretrained must be None"):
        load_clip("org/name", "openai", source="transformers")
    with pytest.raises(ValueError, match="source"):
        load_clip("org/name", source="flax")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_clip("nothing", source="transformers")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_clip(tmp_path, source="transformers")


def test_damaged_and_other_folders(tmp_path):
    folder = their_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_clip(folder, source="transformers")
    weights.unlink()
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_clip(folder, source="transformers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    with pytest.raises(ValueError, match="of type 'siglip'"):
        load_clip(folder, source="transformers")


def test_weights_that_lack_a_tensor(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = their_folder(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"for example visual_projection\.weight"):
        load_clip(folder, source="transformers")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image_mean": [0.5, ', "is not readable"),
        ("[1]", "must contain a JSON object"),
        ('{"do_normalize": false}', "do_normalize"),
        ('{"resample": 1}', "resample=1"),
        ('{"size": {"shortest_edge": 64}, "crop_size": 48}', "must be equal"),
    ],
)
def test_preprocessing_that_is_not_understood_is_refused(tmp_path, content, message):
    folder = their_folder(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=f"^model: .*preprocessor_config.json .*{message}"):
        load_clip(str(folder), source="transformers")
