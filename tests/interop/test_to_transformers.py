"""`CLIPClassifier.to_transformers`: transformers' model gives our logits."""

import copy
import sys

import open_clip
import pytest
import torch
import transformers
from helpers.engine_checks import EXACT, frozen, perturb, relative
from helpers.method_checks import tuner_of
from helpers.models import SMALL, small_model
from helpers.transformers_clips import their_clip

import fastprompt
from examples import to_transformers as example
from fastprompt import load_clip


def tuned(clip, method):
    if method == "coop":
        return fastprompt.CoOpTuner(clip, ["cat", "dog", "red circle"], n_ctx=2)
    return tuner_of(method, clip=clip)


@pytest.fixture(scope="module")
def clip():
    return load_clip(perturb(small_model()))


@pytest.mark.parametrize("method", ["advpt", "apt", "coop"])
def test_the_logits_are_equal(method, clip):
    classifier = tuned(clip, method).classifier.in_precision("fp32")
    pixels = torch.rand(3, 3, 48, 48)
    found, wanted = example.logits(classifier, pixels), classifier(pixels)
    assert (found - wanted).abs().max() < 1e-5
    model, embeds, names = classifier.to_transformers()
    assert embeds.shape == (len(names), 16)
    assert names == classifier.classnames
    assert isinstance(model, transformers.CLIPModel)


@pytest.mark.parametrize("layout", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": 49407}])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_model_comes_back_with_the_same_weights(layout, text, quick_gelu):
    config = copy.deepcopy(SMALL)
    config["text_cfg"] |= text
    torch.manual_seed(0)
    clip = frozen(layout(**config, quick_gelu=quick_gelu).eval())
    model, *_ = clip.zero_shot(["cat", "dog"]).to_transformers()
    assert model.dtype == torch.float64
    back = load_clip(model, source="transformers")
    pixels = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    assert relative(back.encode_image(pixels), clip.encode_image(pixels)) < EXACT
    assert relative(back.encode_text(["a cat"]), clip.encode_text(["a cat"])) < EXACT


def test_a_model_of_transformers_goes_there_and_back(tmp_path):
    theirs = their_clip()
    model, *_ = load_clip(theirs, source="transformers").zero_shot(["cat", "dog"]).to_transformers()
    wanted = theirs.state_dict()
    assert model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(model.state_dict()[key], wanted[key]) for key in wanted)
    for part in ("text_config", "vision_config"):
        for key in ("hidden_size", "intermediate_size", "hidden_act", "num_attention_heads"):
            assert getattr(getattr(model.config, part), key) == getattr(
                getattr(theirs.config, part), key
            )
    assert model.config.text_config.eos_token_id == theirs.config.text_config.eos_token_id
    model.save_pretrained(tmp_path)
    assert load_clip(str(tmp_path), source="transformers").fingerprint


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("capt", r"visual prompts.*format='onnx'"),
        ("nap", r"visual prompts.*format='onnx'"),
        ("ampt", r"router.*format='onnx'"),
    ],
)
def test_what_text_alone_does_not_give_is_refused(method, message, clip):
    with pytest.raises(ValueError, match=message):
        tuner_of(method, clip=clip).classifier.to_transformers()


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        ({"pool_type": "avg"}, {}, "pool the class token"),
        ({"ls_init_value": 0.1}, {}, "ls_1"),
        ({"image_size": (32, 48)}, {}, "not square"),
        ({}, {"no_causal_mask": True}, "not causal"),
        ({}, {"pool_type": "last"}, "pools by 'last'"),
        ({}, {"proj_bias": True}, "text_projection.bias"),
    ],
)
def test_what_a_clip_model_lacks_is_refused_by_name(vision, text, message):
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= vision
    config["text_cfg"] |= text
    torch.manual_seed(0)
    clip = load_clip(open_clip.CustomTextCLIP(**config).eval())
    with pytest.raises(ValueError, match=message):
        clip.zero_shot(["cat", "dog"]).to_transformers()


def test_what_only_the_features_show_is_refused(clip):
    model = copy.deepcopy(clip.model)
    model.visual.transformer.resblocks[0].register_forward_hook(lambda *given: 1.1 * given[-1])
    with pytest.raises(ValueError, match="image features"):
        load_clip(model).zero_shot(["cat", "dog"]).to_transformers()
    model = copy.deepcopy(clip.model)
    model.visual.transformer.resblocks[1].mlp.gelu = torch.nn.GELU(approximate="tanh")
    with pytest.raises(ValueError, match="neither GELU nor QuickGELU"):
        load_clip(model).zero_shot(["cat", "dog"]).to_transformers()


def test_transformers_is_named_where_it_is_missing(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"fastprompt\[hf\]"):
        clip.zero_shot(["cat", "dog"]).to_transformers()
    with pytest.raises(ImportError, match=r"fastprompt\[hf\]"):
        load_clip("org/name", source="transformers")


def test_the_example_runs(monkeypatch, capsys):
    data = fastprompt.load_data("patterns", shots=1)
    monkeypatch.setattr(fastprompt, "load_data", lambda *_, **__: data)
    example.main()
    ours, theirs = (line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines())
    assert ours == theirs
