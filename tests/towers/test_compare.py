"""The user's model decides: a tower is used only if it reproduces the model's own features."""

import copy
import logging
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.altered import ALTERED, SHRUNK, altered, shrunk, wide
from helpers.engine_checks import agree, noise, relative
from helpers.models import SMALL, small_model
from torch import Tensor, nn

from fastprompt import DeepPrompts, FrozenCLIP, PromptedCLIP, load_clip
from fastprompt._utils.attention import plain_attention
from fastprompt.methods.registry import TUNERS
from fastprompt.prompts.values import PromptValues
from fastprompt.towers import ImageTower, ReferenceImageTower, ReferenceTextTower, TextTower
from fastprompt.towers.compare import gap
from fastprompt.towers.engines import PlainImageTower, make_image_tower, make_text_tower

NAMES = ["cat", "very small dog", "red circle"]
EXACT = 1e-10
IMAGE = {"fast": ImageTower, "reference": ReferenceImageTower, "": PlainImageTower}
TEXT = {"fast": TextTower, "reference": ReferenceTextTower}
ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


class NoPrompts(nn.Module):
    """Prompts without a token: a prompted model with them is the plain model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.empty(0, width))

    def values(self) -> PromptValues:
        return PromptValues(self.context, None, None)


def normalization(model: Any) -> dict[str, list[float]]:
    """A mean and std for each channel of a model."""
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    return {
        "mean": [0.3 + 0.05 * i for i in range(channels)],
        "std": [0.2 + 0.05 * i for i in range(channels)],
    }


def loaded(model: nn.Module) -> FrozenCLIP:
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    return load_clip(model, tokenizer=tokenizer, **normalization(model))


def pixels(clip: FrozenCLIP, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(batch, *clip.pixel_shape, generator=generator, dtype=torch.float64)


def features(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def own_image(model: Any, clip: FrozenCLIP, images: Tensor) -> Tensor:
    """Image features of the model that was loaded, computed by itself."""
    values = normalization(model)
    mean, std = (
        torch.tensor(values[k], dtype=torch.float64).view(-1, 1, 1) for k in ("mean", "std")
    )
    with plain_attention():
        return features(model.encode_image((images - mean) / std))


@torch.no_grad()
def own_logits(model: Any, clip: FrozenCLIP, images: Tensor, form: str) -> Tensor:
    with plain_attention():
        text = features(model.encode_text(clip.tokenizer([form.format(n) for n in NAMES])))
    image = F.normalize(own_image(model, clip, images), dim=-1)
    logits = model.logit_scale.exp() * image @ F.normalize(text, dim=-1).T
    bias = getattr(model, "logit_bias", None)
    return logits if bias is None else logits + bias


def assert_own(model: Any, clip: FrozenCLIP, engine: str) -> None:
    """The zero-shot and the prompted classifier are the model's own, or refused."""
    images = pixels(clip)
    classifier = clip.zero_shot(NAMES, ["a photo of a {}."], engine=engine)
    own = own_logits(model, clip, images, "a photo of a {}.")
    assert own.std() > 1e-3
    assert relative(classifier(images), own) <= EXACT
    if reason := clip.why_no_text_prompts():
        with pytest.raises(ValueError, match=r"^clip: .*text prompts"):
            make_text_tower(clip, NAMES, 0, engine=engine)
        assert clip.describe().prompts["text"] == reason
        return
    prompts = NoPrompts(clip.text_parts.width).double()
    prompted = PromptedCLIP(clip, NAMES, prompts, engine=engine)
    assert relative(prompted(images), own_logits(model, clip, images, "{}.")) <= EXACT


# ---- architectures -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHRUNK)
def test_architectures_are_their_own_forward(name, monkeypatch):
    model = shrunk(name, monkeypatch)
    clip = loaded(model)
    for engine in ("fast", "reference"):
        assert_own(model, clip, engine)
    page = clip.describe()
    plain = type(model.visual).__name__ != "VisionTransformer" or name.startswith("coca")
    assert bool(page.prompts["visual"]) == plain
    assert bool(page.prompts["text"]) == name.startswith("coca")
    if not plain:
        assert page.compared["image encoder, fast engine"].startswith("equal, relative difference")
    else:
        assert "own encode_image" in page.compared["image encoder"]
        assert "own encode_image" in str(page)


def test_a_hugging_face_text_encoder_is_its_own_forward():
    pytest.importorskip("transformers")
    from helpers.hf_text import hf_clip

    clip = hf_clip()
    model = copy.deepcopy(clip.model)
    again = load_clip(model, tokenizer=clip.tokenizer, **normalization(model))
    for engine in ("fast", "reference"):
        assert_own(model, again, engine)
    assert again.describe().compared["text encoder, fast engine"].startswith("equal")


# ---- models that compute something else --------------------------------------------------------


@pytest.mark.parametrize("name", ALTERED)
def test_altered_models_are_their_own_forward_or_refused(name, caplog):
    _, image, text = ALTERED[name]
    model = altered(name)
    clip = loaded(model)
    # the log says so once, at load
    warned = [r.message for r in caplog.records if "does not reproduce" in r.message]
    assert len(warned) == (image != "fast") + (text != "fast")
    for engine in ("fast", "reference"):
        used = "reference" if engine == "reference" and image else image
        assert type(make_image_tower(clip, engine=engine)) is IMAGE[used]
        if text:
            used = "reference" if engine == "reference" else text
            assert type(make_text_tower(clip, NAMES, 2, engine=engine)) is TEXT[used]
        assert_own(model, clip, engine)


@pytest.mark.parametrize("name", ALTERED)
def test_describe_says_what_differs(name):
    page = loaded(altered(name)).describe()
    for encoder, engine in (("image", ALTERED[name][1]), ("text", ALTERED[name][2])):
        for each in ("fast", "reference"):
            result = page.compared[f"{encoder} encoder, {each} engine"]
            used = engine == "fast" or engine == each
            assert result.startswith("equal, relative difference" if used else "not used, ")
            assert f"{encoder} encoder, {each} engine: {result}" in str(page)
        kind = {"image": "visual", "text": "text"}[encoder]
        assert bool(page.prompts[kind]) == (not engine)
        path = [why for path, why in page.fast_paths.items() if path.startswith(encoder)]
        assert all(bool(why) == (engine != "fast") for why in path)


@pytest.mark.parametrize("name", [n for n, (_, image, text) in ALTERED.items() if image and text])
def test_visual_prompts_of_altered_models_agree(name):
    clip = loaded(altered(name))
    prompts = DeepPrompts.for_clip(clip, 2, refiners=True).double()
    with torch.no_grad():
        for i, p in enumerate(prompts.parameters()):
            p += noise(*p.shape, seed=i).detach()
    images = pixels(clip).requires_grad_()
    engines = [PromptedCLIP(clip, NAMES, prompts, engine=e) for e in ("fast", "reference")]
    learnable = {"pixels": images, "tokens": prompts.tokens, "map": prompts.map_weight}
    agree([lambda e=e: e(images) for e in engines], learnable, EXACT)


@pytest.mark.parametrize("name", [n for n, (_, image, _) in ALTERED.items() if not image])
@ENGINES
def test_visual_prompts_are_refused_with_the_numbers(name, engine):
    clip = loaded(altered(name))
    with pytest.raises(ValueError, match=r"visual prompts: .*encode_image \(.*\d\.\de[+-]\d"):
        make_image_tower(clip, (0,), engine=engine)
    with pytest.raises(ValueError, match=r"^clip: .*deep prompts: .*encode_image"):
        DeepPrompts.for_clip(clip, 2)
    for method, takes in (("nap", False), ("capt", False), ("apt", True), ("advpt", True)):
        reason = TUNERS[method].unfit(clip)
        assert takes == (not reason)
        if not takes:
            with pytest.raises(ValueError, match=r"^clip: .*encode_image \(fast engine: relative"):
                TUNERS[method](clip, NAMES, engine=engine)


@ENGINES
def test_a_text_encoder_that_no_engine_reproduces_is_refused_with_the_numbers(engine):
    clip = loaded(altered("encode_text"))
    numbers = r"encode_text \(fast engine: relative difference \d.*reference engine: relative .*\d"
    for make in (
        lambda: make_text_tower(clip, NAMES, 2, engine=engine),
        lambda: PromptedCLIP(clip, NAMES, NoPrompts(24), engine=engine),
        lambda: TUNERS["apt"](clip, NAMES, engine=engine),
    ):
        with pytest.raises(ValueError, match=f"^clip: .*{numbers}"):
            make()


def test_a_reference_tower_that_differs_is_not_used():
    clip = loaded(altered("conv-bias"))
    inexact = gap(loaded(altered("encode_image")), "image", "reference")
    assert not inexact.exact
    for found in clip.gaps.values():
        found["reference"] = inexact
    assert type(make_image_tower(clip, engine="reference")) is PlainImageTower
    assert type(make_image_tower(clip)) is ImageTower
    with pytest.raises(ValueError, match=r"^engine must be 'fast'.*image.*relative difference"):
        make_image_tower(clip, (0,), engine="reference")
    with pytest.raises(ValueError, match=r"^engine must be 'fast'.*text.*relative difference"):
        make_text_tower(clip, NAMES, 2, engine="reference")


def test_the_models_own_forward_runs_in_lower_precision_with_its_hooks():
    for name in ("visual-hook", "encode_image", "encode_image-object"):
        model = altered(name)
        clip = loaded(model)
        low = make_image_tower(clip, precision="fp32")
        own = own_image(model, clip, pixels(clip))
        # an `encode_image` of the object may use the object itself, which is not cast
        assert low(pixels(clip)).dtype == (torch.float64 if "object" in name else torch.float32)
        assert relative(low(pixels(clip)).double(), own) <= 1e-5
        assert clip.dtype == torch.float64


def test_a_model_that_cannot_run_in_lower_precision_keeps_its_own(caplog):
    adapter = nn.Linear(16, 16)  # not part of the image encoder, and not cast with it
    model = small_model()
    model.visual.register_forward_hook(lambda m, a, out: out + adapter(out))
    clip = load_clip(model)
    low = make_image_tower(clip, precision="bf16")
    images = pixels(clip).float()
    assert torch.equal(low(images), make_image_tower(clip, precision="fp32")(images))
    assert "encode_image fails in torch.bfloat16 (RuntimeError" in caplog.text


# ---- when it runs ------------------------------------------------------------------------------


def test_the_comparison_is_cached_until_the_weights_change(monkeypatch):
    clip = load_clip(small_model())
    known = dict(clip.gaps)
    assert set(known) == {"image", "text"}
    monkeypatch.setattr(clip.model, "encode_image", None)
    make_image_tower(clip)
    copied = copy.deepcopy(clip)
    assert copied.gaps == known
    monkeypatch.undo()
    assert not copied.double().gaps
    make_image_tower(copied)
    assert copied.gaps["image"]["fast"].rounding < 1e-8
    clip.load_state_dict(clip.state_dict())
    assert not clip.gaps


def test_random_numbers_and_gradients_are_left_alone():
    model = small_model()
    grads: list[bool] = []
    model.visual.register_forward_hook(lambda m, a, out: out + torch.rand(()))
    model.visual.register_forward_pre_hook(lambda m, a: grads.append(torch.is_grad_enabled()))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    clip = load_clip(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert set(grads) == {False}
    assert "relative difference" in clip.why_no_visual_prompts()


def test_a_model_that_raises_an_error_is_not_refused_at_load(caplog):
    model = small_model()

    def fail(*_: object) -> None:
        raise KeyError("my own")

    model.ln_final.register_forward_hook(fail)
    clip = load_clip(model)
    assert "KeyError" in clip.why_no_text_prompts()
    assert "my own" in caplog.text
    assert not clip.why_no_visual_prompts()


def test_standard_models_load_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "fastprompt"):
        load_clip("tiny-shapes")
        load_clip(small_model(open_clip.CustomTextCLIP, no_causal_mask=True))
    assert not [r for r in caplog.records if r.name.startswith("fastprompt")]


# ---- channels and sizes ------------------------------------------------------------------------


@ENGINES
def test_images_that_are_not_square(engine):
    model = wide()
    clip = loaded(model)
    assert clip.image_size == (32, 64)
    assert clip.pixel_shape == (3, 32, 64)
    assert_own(model, clip, engine)
    assert "32 x 64 pixels, patch 16\n" in str(clip.describe())
    with pytest.raises(ValueError, match=r"^images .*\[B, 3, 32, 64\].*image_size=\(32, 64\)"):
        clip.encode_image(torch.zeros(1, 3, 64, 32))


def test_patches_that_are_not_square():
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= {"patch_size": (8, 16)}
    page = load_clip(open_clip.CLIP(**config).eval()).describe()
    assert page.patch_size == (8, 16)
    assert "48 pixels, patch 8 x 16\n" in str(page)


def test_images_with_another_number_of_channels_are_refused():
    clip = loaded(altered("one-channel"))
    assert (clip.channels, clip.pixel_shape) == (1, (1, 48, 48))
    for classify in (clip.encode_image, clip.zero_shot(NAMES)):
        with pytest.raises(ValueError, match=r"^images .*\[B, 1, H, W\].*\[2, 3, 48, .*channels=1"):
            classify(torch.zeros(2, 3, 48, 48))


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_model_without_three_channels_needs_mean_and_std(key):
    model = altered("one-channel")
    values = normalization(model)
    missing = {k: v for k, v in values.items() if k != key}
    with pytest.raises(ValueError, match=f"^{key} is required: .*1-channel.*pass mean and std"):
        load_clip(model, **missing)
    with pytest.raises(ValueError, match=rf"^{key} must have 1 values.*\[0.5, 0.5, 0.5\]"):
        load_clip(model, **{**values, key: [0.5] * 3})
    model.visual.image_mean, model.visual.image_std = (0.5,), (0.25,)
    assert load_clip(model).mean.flatten().tolist() == [0.5]
