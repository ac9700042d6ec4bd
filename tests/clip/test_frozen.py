import copy
import math

import open_clip
import pytest
import torch
from helpers.models import SMALL, small_model
from open_clip.transformer import QuickGELU
from torch import nn

from fastprompt import FrozenCLIP, load_clip
from fastprompt.clip.frozen import plain_attention

LAYOUTS = [open_clip.CLIP, open_clip.CustomTextCLIP]
NAMES = ["red circle", "blue star", "green moon"]
FORMS = ["a photo of a {}.", "{}", "this picture shows a {}, among others"]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return small_model(request.param)


@pytest.fixture
def clip(model: nn.Module) -> FrozenCLIP:
    return load_clip(model)


@pytest.fixture
def fast_attention():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def normalize_by_hand(images: torch.Tensor) -> torch.Tensor:
    channels = [
        (images[:, i] - open_clip.OPENAI_DATASET_MEAN[i]) / open_clip.OPENAI_DATASET_STD[i]
        for i in range(3)
    ]
    return torch.stack(channels, dim=1)


# ---- frozen ------------------------------------------------------------------------------------


def test_stays_in_eval_mode(clip: FrozenCLIP) -> None:
    assert clip.train() is clip
    assert not any(module.training for module in clip.modules())
    outer = nn.Sequential(clip).train()
    assert outer.training
    assert not any(module.training for module in clip.modules())


def test_a_model_in_training_mode_is_put_into_eval_mode() -> None:
    clip = load_clip(small_model().train())
    assert not any(module.training for module in clip.modules())


def test_no_weight_takes_gradients(clip: FrozenCLIP, images: torch.Tensor) -> None:
    assert not any(p.requires_grad for p in clip.parameters())
    clip.encode_image(images.requires_grad_()).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.abs().sum() > 0)
    assert all(p.grad is None for p in clip.parameters())


def test_unfreezing_is_refused(clip: FrozenCLIP) -> None:
    with pytest.raises(RuntimeError, match="stays frozen"):
        clip.requires_grad_(True)
    with pytest.raises(RuntimeError, match="stays frozen"):
        clip.requires_grad_()
    assert clip.requires_grad_(False) is clip
    assert not any(p.requires_grad for p in clip.parameters())


def test_the_models_own_object_is_left_as_it_was(model: nn.Module, images: torch.Tensor) -> None:
    model.train()
    model.visual.eval()
    model.visual.ln_post.weight.requires_grad_(False)
    model.logit_scale.grad = torch.tensor(2.5)
    before = {
        "state": copy.deepcopy(model.state_dict()),
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: copy.deepcopy(p.grad) for name, p in model.named_parameters()},
        "storage": {name: p.data_ptr() for name, p in model.named_parameters()},
    }
    assert len(set(before["training"].values())) == 2

    classifier = load_clip(model).zero_shot(NAMES)
    classifier(images.requires_grad_()).sum().backward()

    assert model.state_dict().keys() == before["state"].keys()
    assert all(torch.equal(v, before["state"][k]) for k, v in model.state_dict().items())
    assert {n: m.training for n, m in model.named_modules()} == before["training"]
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before["requires_grad"]
    assert {n: p.grad for n, p in model.named_parameters()} == before["grad"]
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before["storage"]


def test_later_changes_to_the_object_do_not_reach_the_clip(
    model: nn.Module, images: torch.Tensor
) -> None:
    clip = load_clip(model)
    image, text = clip.encode_image(images), clip.encode_text(NAMES)
    scale = clip.logit_scale.item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.train()
    assert not torch.equal(load_clip(model).encode_image(images), image)
    assert torch.equal(clip.encode_image(images), image)
    assert torch.equal(clip.encode_text(NAMES), text)
    assert clip.logit_scale.item() == scale


# ---- encoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [True, False])
def test_image_features_are_open_clips_own(
    model: nn.Module, images: torch.Tensor, gradients: bool
) -> None:
    clip = load_clip(model)
    with torch.set_grad_enabled(gradients):
        with plain_attention():
            theirs = model.requires_grad_(False).encode_image(normalize_by_hand(images))
        assert torch.equal(clip.encode_image(images), theirs)
    assert theirs.shape == (4, 16)


def test_image_features_are_the_same_with_and_without_gradients(
    clip: FrozenCLIP, images: torch.Tensor, fast_attention: None
) -> None:
    with torch.no_grad():
        without = clip.encode_image(images)
    with torch.inference_mode():
        inference = clip.encode_image(images)
    frozen = clip.encode_image(images)
    attacked = clip.encode_image(images.clone().requires_grad_())
    assert attacked.requires_grad
    for other in (without, inference, frozen):
        assert torch.equal(other, attacked)


def test_own_normalization_is_used(images: torch.Tensor) -> None:
    model = small_model()
    clip = load_clip(model, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    by_hand = torch.stack(
        [(images[:, i] - (0.1, 0.2, 0.3)[i]) / (0.4, 0.5, 0.6)[i] for i in range(3)], dim=1
    )
    with plain_attention(), torch.no_grad():
        assert torch.equal(clip.encode_image(images), model.encode_image(by_hand))


def test_float64_pixels_are_taken(clip: FrozenCLIP, images: torch.Tensor) -> None:
    features = clip.encode_image(images.double())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, clip.encode_image(images))


def test_text_features_are_open_clips_own_across_batches(model: nn.Module) -> None:
    clip = load_clip(model)
    texts = [f"a photo of {i} stars" for i in range(300)]
    tokens = open_clip.SimpleTokenizer()(texts)
    with plain_attention(), torch.no_grad():
        theirs = model.encode_text(tokens)
    ours = clip.encode_text(texts)
    assert not ours.requires_grad
    assert ours.shape == (300, 16)
    torch.testing.assert_close(ours, theirs)
    closest = torch.cdist(ours, theirs).argmin(dim=1)
    assert closest.tolist() == list(range(300))


@pytest.mark.parametrize("before", [True, False])
def test_the_attention_shortcut_is_off_inside_and_as_before_outside(
    clip: FrozenCLIP, images: torch.Tensor, before: bool, fast_attention: None
) -> None:
    torch.backends.mha.set_fastpath_enabled(before)
    seen = []
    for part in (clip.model.visual, clip.text_parts.ln_final):
        part.register_forward_hook(
            lambda *_: seen.append(torch.backends.mha.get_fastpath_enabled())
        )
    clip.encode_image(images)
    clip.encode_text(NAMES)
    assert seen == [False, False]
    assert torch.backends.mha.get_fastpath_enabled() is before


@pytest.mark.parametrize("before", [True, False])
def test_the_attention_shortcut_is_restored_after_an_error(
    clip: FrozenCLIP, images: torch.Tensor, before: bool, fast_attention: None
) -> None:
    torch.backends.mha.set_fastpath_enabled(before)

    def fail(*_: object) -> None:
        raise KeyError("in the middle")

    clip.model.visual.register_forward_hook(fail)
    with pytest.raises(KeyError, match="in the middle"):
        clip.encode_image(images)
    assert torch.backends.mha.get_fastpath_enabled() is before


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 48), ValueError, r"\[B, 3, 48, 48\].*\[2, 3, 32, 48\]"),
        (torch.zeros(2, 3, 64, 64), ValueError, "image_size=48"),
        (torch.zeros(2, 1, 48, 48), ValueError, r"\[B, 3, H, W\].* \[2, 1, 48, 48\]"),
        (torch.zeros(3, 48, 48), ValueError, r"\[B, 3, H, W\].* \[3, 48, 48\]"),
        (torch.zeros(2, 3, 48, 48, dtype=torch.uint8), TypeError, "uint8.* 255"),
        (torch.zeros(2, 3, 48, 48, dtype=torch.float16), TypeError, r"float16.*\.float\(\)"),
        ([[0.0]], TypeError, "tensor.* list"),
    ],
)
def test_bad_pixels_are_told(
    small_clip: FrozenCLIP, bad: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^images .*{message}"):
        small_clip.encode_image(bad)


# ---- zero-shot ---------------------------------------------------------------------------------


def slow_logits(
    model: nn.Module, images: torch.Tensor, names: list[str], forms: list[str]
) -> torch.Tensor:
    tokenizer = open_clip.SimpleTokenizer()
    scale = math.exp(model.logit_scale.item())
    logits = torch.zeros(len(images), len(names))
    for c, name in enumerate(names):
        mean = torch.zeros(16)
        for form in forms:
            before, after = form.split("{}")
            text = model.encode_text(tokenizer([before + name + after]))[0]
            mean += text / text.norm() / len(forms)
        for i, image in enumerate(normalize_by_hand(images)):
            feature = model.encode_image(image[None])[0]
            logits[i, c] = scale * (feature @ mean) / feature.norm() / mean.norm()
    return logits


@torch.no_grad()
def test_zero_shot_is_the_papers_formula(model: nn.Module, images: torch.Tensor) -> None:
    classifier = load_clip(model).zero_shot(NAMES, FORMS)
    slow = slow_logits(model, images, NAMES, FORMS)
    torch.testing.assert_close(classifier(images), slow, rtol=1e-5, atol=1e-5)
    first_alone = slow_logits(model, images, NAMES, FORMS[:1])
    assert bool(((slow - first_alone).abs() > 1e-3).all())
    assert classifier.classnames == NAMES


@torch.no_grad()
def test_one_template_may_be_a_plain_string(small_clip: FrozenCLIP) -> None:
    as_string = small_clip.zero_shot(NAMES, "a drawing of a {}").text_features
    as_list = small_clip.zero_shot(NAMES, ["a drawing of a {}"]).text_features
    default = small_clip.zero_shot(NAMES).text_features
    assert torch.equal(as_string, as_list)
    assert not torch.equal(as_string, default)
    torch.testing.assert_close(default.norm(dim=1), torch.ones(3))


@torch.no_grad()
def test_braces_in_a_class_name_are_ordinary_letters(small_clip: FrozenCLIP) -> None:
    features = small_clip.zero_shot(["{0}", "{x}"], ["a {}"]).text_features
    expected = small_clip.encode_text(["a {0}", "a {x}"])
    torch.testing.assert_close(features, expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vector", [False, True])
@torch.no_grad()
def test_the_logit_bias_is_added(images: torch.Tensor, layout: type, vector: bool) -> None:
    torch.manual_seed(0)
    config = copy.deepcopy(SMALL)
    model = layout(**config, init_logit_bias=-10.0, nonscalar_logit_scale=vector).eval()
    biased = load_clip(model)
    assert biased.logit_bias.shape == ()
    assert biased.logit_scale.shape == ()
    with_bias = biased.zero_shot(NAMES)(images)
    model.logit_bias = None
    plain = load_clip(model)
    assert plain.logit_bias is None
    assert torch.equal(with_bias, plain.zero_shot(NAMES)(images) - 10.0)


@pytest.mark.parametrize(
    "templates",
    [[], "", ["a photo"], ["{}", "a photo"], ["{} and {}"], ["a {name}"]],
)
def test_bad_templates_are_told(small_clip: FrozenCLIP, templates: object) -> None:
    with pytest.raises(ValueError, match=r"^templates .*'\{\}'"):
        small_clip.zero_shot(NAMES, templates)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], ValueError, "empty"),
        (["cat", "dog", "cat"], ValueError, "'cat'"),
        (["cat", " "], ValueError, "blank"),
        (["cat", ""], ValueError, "blank"),
        ("cat", TypeError, "string 'cat'"),
        (["cat", 3], TypeError, "strings.* 3"),
    ],
)
def test_bad_class_names_are_told(
    small_clip: FrozenCLIP, names: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^classnames .*{message}"):
        small_clip.zero_shot(names)


@pytest.mark.parametrize("shape", [(2, 16), (4, 16), (16,)])
def test_a_classifier_needs_one_text_feature_a_class(
    small_clip: FrozenCLIP, shape: tuple[int, ...]
) -> None:
    kind = type(small_clip.zero_shot(NAMES))
    with pytest.raises(ValueError, match=r"^text_features .*\[3, D\]"):
        kind(small_clip, torch.ones(shape), NAMES)


# ---- facts -------------------------------------------------------------------------------------


def test_facts_of_a_small_model(model: nn.Module) -> None:
    clip = load_clip(model)
    assert clip.image_size == 48
    assert clip.context_length == 77
    assert clip.dtype == torch.float32
    assert clip.device == torch.device("cpu")
    assert clip.logit_scale.item() == pytest.approx(1 / 0.07)
    page = clip.describe()
    assert (page.embed_dim, page.image_size, page.patch_size) == (16, 48, 16)
    assert (page.image_width, page.image_layers) == (32, 2)
    assert (page.text_width, page.text_layers, page.context_length) == (24, 2, 77)
    assert page.image_tower == "VisionTransformer"
    assert page.text_tower == "TextTransformer"
    assert page.causal
    assert page.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": 49407}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_fit_a_causal_tower_that_pools_the_end(layout: type, pool: dict) -> None:
    page = load_clip(small_model(layout, **pool)).describe()
    assert page.prompts == {"text": "", "visual": ""}
    assert page.methods["advpt"] == ""
    assert set(page.fast_paths.values()) == {""}
    assert "method advpt: yes" in str(page).splitlines()[3]
    assert "no:" not in str(page)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ({"no_causal_mask": True}, ["not causal", "attends to the padding", "", ""]),
        ({"pool_type": "last"}, ["", "reads its last token, behind the padding", "", ""]),
    ],
    ids=["not causal", "last token"],
)
def test_the_page_says_which_fast_paths_are_left(layout: type, text: dict, reasons: list) -> None:
    page = load_clip(small_model(layout, **text)).describe()
    assert page.prompts == {"text": "", "visual": ""}
    for why, expected in zip(page.fast_paths.values(), reasons, strict=True):
        assert (expected in why) if expected else why == ""
    assert f"no: {page.fast_paths[list(page.fast_paths)[1]]}" in str(page)


@pytest.mark.parametrize(
    ("layout", "text", "reason"),
    [
        (open_clip.CLIP, {"pool_type": "first"}, "which no prompt reaches"),
        (open_clip.CustomTextCLIP, {"pool_type": "first"}, "which no prompt reaches"),
        (open_clip.CustomTextCLIP, {"pool_type": "none"}, "pools its tokens by 'none'"),
        (open_clip.CustomTextCLIP, {"embed_cls": True}, "appends a class token"),
    ],
)
def test_a_tower_that_takes_no_prompts_says_why(layout: type, text: dict, reason: str) -> None:
    clip = load_clip(small_model(layout, **text))
    page = clip.describe()
    assert reason in page.prompts["text"]
    assert page.methods["advpt"] == page.prompts["text"]
    assert page.prompts["visual"] == ""
    assert page.causal
    assert page.text_width is None
    shown = str(page).splitlines()
    assert f"  method advpt: no: {page.prompts['text']}" in shown
    assert f"  prompts text: no: {page.prompts['text']}" in shown
    assert "  prompts visual: yes" in shown
    if text.get("pool_type") != "none":
        assert clip.zero_shot(NAMES).text_features.isfinite().all()


def test_a_text_tower_of_another_kind_says_why() -> None:
    class Foreign(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.inner(tokens)

    model = small_model(open_clip.CustomTextCLIP)
    model.text = Foreign(model.text)
    page = load_clip(model).describe()
    assert page.text_tower == "Foreign"
    assert page.prompts["text"] == "the text tower is a Foreign, not open_clip's own transformer"


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}, "ModifiedResNet"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "pools by attention"),
        ({"pool_type": "none"}, "pools by 'none'"),
    ],
)
def test_an_image_tower_that_takes_no_prompts_says_why(vision: dict, reason: str) -> None:
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= vision
    page = load_clip(open_clip.CLIP(**config)).describe()
    assert reason in page.prompts["visual"]
    assert page.prompts["text"] == ""
    assert f"  prompts visual: no: {page.prompts['visual']}" in str(page).splitlines()


def test_text_parts_follow_the_weights_when_they_move(clip: FrozenCLIP) -> None:
    assert clip.text_parts.attn_mask.dtype == torch.float32
    clip.double()
    assert clip.text_parts.attn_mask.dtype == torch.float64
    assert clip.text_parts.positional_embedding.dtype == torch.float64


def test_fingerprints_are_equal_for_equal_weights(model: nn.Module) -> None:
    assert load_clip(model).fingerprint == load_clip(copy.deepcopy(model)).fingerprint


def test_fingerprints_differ_for_one_changed_value(model: nn.Module) -> None:
    prints = {load_clip(model).fingerprint}
    for name in ("logit_scale", "visual.conv1.weight", "visual.ln_post.bias"):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            flat = changed.get_parameter(name).view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
        prints.add(load_clip(changed).fingerprint)
    assert len(prints) == 4


def test_fingerprints_differ_by_normalization(model: nn.Module) -> None:
    own = load_clip(model).fingerprint
    assert load_clip(model, mean=(0.5, 0.5, 0.5)).fingerprint != own
    assert load_clip(model, std=(0.5, 0.5, 0.5)).fingerprint != own


def test_fingerprints_differ_by_seed() -> None:
    assert load_clip(small_model(seed=0)).fingerprint != load_clip(small_model(seed=1)).fingerprint


def test_a_name_that_the_tokenizer_would_cut_is_refused(small_clip):
    long = "word " * 90
    with pytest.raises(ValueError, match=r"^classnames.*'word .* 77 tokens"):
        small_clip.zero_shot(["cat", long + "dog"])
    fits = " ".join(["cat"] * 70)
    small_clip.zero_shot([fits], ["{}."])


def test_underscores_are_spaces_in_every_prompt(small_clip):
    with_spaces = small_clip.zero_shot(["red circle"]).text_features
    assert torch.equal(small_clip.zero_shot(["red_circle"]).text_features, with_spaces)
    with pytest.raises(ValueError, match=r"^classnames .*'red.circle'"):
        small_clip.zero_shot(["red_circle", "red circle"])


def test_fingerprint_tells_architectures_with_equal_weights_apart():
    plain, quick = small_model(), small_model()
    quick.load_state_dict(plain.state_dict())
    for block in quick.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    assert load_clip(plain).fingerprint != load_clip(quick).fingerprint
    heads = small_model(heads=3)
    heads.load_state_dict(plain.state_dict())
    assert load_clip(plain).fingerprint != load_clip(heads).fingerprint


def test_fingerprint_follows_a_cast():
    clip = load_clip(small_model())
    before = clip.fingerprint
    assert clip.double().fingerprint != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_runs_in_float32(dtype, images):
    model = small_model().to(dtype)
    clip = load_clip(model)
    assert clip.dtype == torch.float32
    assert clip.zero_shot(["a", "b"])(images).dtype == torch.float32
    assert next(model.parameters()).dtype == dtype


def test_text_parts_are_refused_with_the_reason() -> None:
    config = copy.deepcopy(SMALL)
    config["text_cfg"]["pool_type"] = "first"
    clip = load_clip(open_clip.CustomTextCLIP(**config))
    assert "first token" in clip.why_no_text_prompts()
    with pytest.raises(ValueError, match=r"^clip.*text prompts.*first token"):
        _ = clip.text_parts


def test_a_conversion_that_changes_nothing_keeps_what_depends_on_the_weights():
    clip = load_clip(small_model())
    version, fingerprint = clip.version, clip.fingerprint
    for same in (clip.to("cpu"), clip.float(), clip.to(torch.float32), clip.requires_grad_(False)):
        assert same.version == version
    assert clip._digest == (version, fingerprint)
    for change in (clip.double, clip.float, lambda: clip.load_state_dict(clip.state_dict())):
        version = clip.version
        change()
        assert clip.version > version


@pytest.mark.parametrize("part", ["model", "model.visual"])
def test_weights_loaded_into_a_part_are_seen(part):
    clip = load_clip(small_model())
    version, fingerprint = clip.version, clip.fingerprint
    module = clip.get_submodule(part)
    module.load_state_dict({k: v + 0.5 for k, v in module.state_dict().items()})
    assert clip.fingerprint != fingerprint
    assert clip.version > version
