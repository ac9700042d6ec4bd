"""NAP: deep prompts and token refiners, from clean to adversarial images over the epochs."""

import open_clip
import pytest
import torch
from helpers.method_checks import (
    BATCH,
    EXACT,
    NAMES,
    agree,
    clip_of,
    cross_entropy,
    data,
    first_step,
    gradients,
    logits_of,
    perturb,
    reference_of,
    relative,
    tuner_of,
)
from helpers.models import SMALL, resnet
from torch import nn

from fastprompt import load_clip
from fastprompt.methods.nap import NAPConfig, NAPTuner, distance
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.values import PromptValues


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


def layer_outputs(model: PromptedCLIP, images: torch.Tensor) -> list[torch.Tensor]:
    """All tokens behind each of open_clip's image blocks, prompts included: L of ``[B, N, W]``."""
    transformer, kept = model.clip.model.visual.transformer, []
    handles = [
        block.register_forward_hook(lambda _, inputs, output: kept.append(output))
        for block in transformer.resblocks
    ]
    model.image(images, model.prompts.values().visual, model.refiners)
    for handle in handles:
        handle.remove()
    assert len(kept) == len(transformer.resblocks)
    return kept if transformer.batch_first else [x.transpose(0, 1) for x in kept]


def slow_distance(model: PromptedCLIP, step, kind: str) -> torch.Tensor:
    """``sum_l (1 - cos(flat(F_l(clean)), flat(F_l(adv))))``, or mean squares; the images' mean."""
    each = []
    both = zip(layer_outputs(model, step.images), layer_outputs(model, step.adv), strict=True)
    for clean, adv in both:
        tokens = 1 + 9 + 3  # class token, patches, prompts
        assert clean.shape == (BATCH, tokens, 32)
        for a, b in zip(clean.reshape(BATCH, -1), adv.reshape(BATCH, -1), strict=True):
            if kind == "cosine":
                each.append(1 - (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
            else:
                each.append((a - b).square().sum() / a.numel())
    return sum(each) / BATCH


def slow_loss(tuner, step, epoch: int) -> torch.Tensor:
    config, model = tuner.config, reference_of(tuner)
    w = epoch / config.epochs if config.schedule == "linear" else 0.5
    clean, adv = (cross_entropy(logits_of(model, x), step.labels) for x in (step.images, step.adv))
    loss = (1 - w) * clean + w * adv
    if config.consistency == "none":
        return loss
    return loss + w * slow_distance(model, step, config.consistency)


OPTIONS = {
    "default": {},
    "fixed": {"schedule": "fixed"},
    "mse": {"consistency": "mse"},
    "no_consistency": {"consistency": "none"},
    "earlier_version": {"schedule": "fixed", "consistency": "none"},
    "fixed-mse": {"schedule": "fixed", "consistency": "mse"},
    "no_refiners": {"refiners": False},
    "text_refiners": {"text_refiners": True},
    "linear_start": {"refiner_start": "linear"},
    "depth_1-no_refiners": {"depth": 1, "refiners": False, "consistency": "none"},
}


@ENGINES
@pytest.mark.parametrize("epoch", [0, 1, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_equals_its_formula(options, epoch, engine):
    tuner = tuner_of("nap", engine, **options)
    step = first_step(tuner, epoch)
    agree(tuner.prompts, tuner.loss(step), slow_loss(tuner, step, epoch))


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_consistency_reaches_both_sides(kind):
    """Clean features are not detached."""
    clean, adv = (
        [normal(BATCH, 5, 4, seed=10 * side + layer).requires_grad_() for layer in range(2)]
        for side in range(2)
    )
    distance(clean, adv, kind).sum().backward()
    assert all(x.grad.norm() > 1e-3 for x in (*clean, *adv))


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_distance_is_summed_over_the_layers(kind):
    clean, adv = ([normal(4, 5, 4, seed=10 * s + layer) for layer in range(3)] for s in range(2))
    whole = distance(clean, adv, kind)
    assert whole.shape == (4,)
    assert whole.dtype == torch.float64
    parts = [distance([a], [b], kind) for a, b in zip(clean, adv, strict=True)]
    assert relative(whole, sum(parts)) <= 1e-12
    assert distance(clean, clean, kind).abs().max() <= 1e-12
    # bfloat16 features, too, are compared in float32
    low = distance([a.bfloat16() for a in clean], [b.bfloat16() for b in adv], kind)
    assert low.dtype == torch.float32
    assert relative(low.double(), whole) < 1e-2


def test_the_adversarial_share_grows_over_the_epochs():
    tuner = tuner_of("nap", consistency="none")
    step = first_step(tuner, 0)
    clean, adv = (tuner.model.see(x).logits for x in (step.images, step.adv))
    clean, adv = (torch.nn.functional.cross_entropy(z, step.labels) for z in (clean, adv))
    assert relative(clean, adv) > 1e-3
    for epoch in range(4):
        later = first_step(tuner, 0)
        later.progress = epoch / 4
        wanted = (1 - epoch / 4) * clean + epoch / 4 * adv
        assert relative(tuner.loss(later), wanted) <= EXACT


# ---- what it reduces to ----------------------------------------------------------------------


class Shallow(nn.Module):
    """A context, and visual prompts mapped from it in front of the first layer alone."""

    def __init__(self, prompts) -> None:
        super().__init__()
        self.context = nn.Parameter(prompts.tokens[0].detach().clone())
        self.map = nn.Linear(24, 32).double()
        with torch.no_grad():
            self.map.weight.copy_(prompts.map_weight[0])
            self.map.bias.copy_(prompts.map_bias[0, 0])

    def values(self) -> PromptValues:
        return PromptValues(self.context, None, self.map(self.context)[None])


@ENGINES
def test_a_depth_of_one_is_a_shallow_multi_modal_prompt(engine):
    tuner = tuner_of("nap", engine, depth=1, refiners=False, schedule="fixed", consistency="none")
    step, shallow = first_step(tuner), Shallow(tuner.prompts)
    model = PromptedCLIP(tuner.clip, NAMES, shallow, engine=engine)
    logits = [model(x) for x in (step.images, step.adv)]
    assert relative(tuner.model(step.images), logits[0]) <= EXACT
    wanted = sum(0.5 * torch.nn.functional.cross_entropy(z, step.labels) for z in logits)
    loss = tuner.loss(step)
    assert relative(loss, wanted) <= EXACT
    ours, theirs = gradients(tuner.prompts, loss), gradients(shallow, wanted)
    for name, of_shallow in (
        ("tokens", theirs["context"][None]),
        ("map_weight", theirs["map.weight"][None]),
        ("map_bias", theirs["map.bias"][None, None]),
    ):
        assert relative(ours[name], of_shallow) <= EXACT, name


@ENGINES
@pytest.mark.parametrize("text", [False, True], ids=["image", "image_and_text"])
def test_refiners_start_as_the_identity(text, engine):
    options = {"perturbed": 0, "text_refiners": text}
    with_them = tuner_of("nap", engine, **options)
    without = tuner_of("nap", engine, perturbed=0, refiners=False)
    images = first_step(without).images
    assert with_them.model.refiners is not None
    assert (with_them.model.text_refiners is not None) == text
    wanted = without.model(images)
    assert relative(with_them.model(images), wanted) <= 1e-12
    moved = tuner_of("nap", engine, **options, refiner_start="linear")
    assert torch.equal(moved.prompts.tokens, without.prompts.tokens)
    assert relative(moved.model(images), wanted) > 1e-3
    assert (relative(moved.model.class_features(), without.model.class_features()) > 1e-3) == text


@ENGINES
@pytest.mark.parametrize("part", ["refiners", "text_refiners"])
def test_refiners_change_what_they_stand_in(part, engine):
    tuner = tuner_of("nap", engine, text_refiners=True)
    images = first_step(tuner).images
    before = tuner.model.image_features(images), tuner.model.class_features()
    perturb(getattr(tuner.prompts, part))
    after = tuner.model.image_features(images), tuner.model.class_features()
    moved = [relative(a, b) > 1e-3 for a, b in zip(after, before, strict=True)]
    assert moved == [part == "refiners", part == "text_refiners"]


def test_an_identity_refiner_learns_in_its_first_steps():
    """Its first layer gets a gradient once the second has left zero."""
    tuner = tuner_of("nap", perturbed=0, lr=1e-2, warmup_epochs=0, text_refiners=True)
    start = {k: v.clone() for k, v in tuner.prompts.state_dict().items()}
    tuner.fit(data(), progress=False)
    for name, value in tuner.prompts.state_dict().items():
        assert not torch.equal(value, start[name]), name


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("refiner_start", "'identity'.*'linear'"),
        ("map_start", "'independent'.*'copies'"),
        ("schedule", "'linear'.*'fixed'"),
        ("consistency", "'cosine'.*'mse'.*'none'"),
    ],
)
def test_an_unknown_choice_is_refused(name, known, small_clip):
    with pytest.raises(ValueError, match=f"^{name} .*{known}.*'other'"):
        NAPConfig(**{name: "other"})
    with pytest.raises(ValueError, match=f"{name}.*other"):
        NAPTuner(small_clip, NAMES, **{name: "other"})


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth, small_clip):
    with pytest.raises(ValueError, match=f"^depth .*1.* {depth}"):
        NAPTuner(small_clip, NAMES, depth=depth)


def test_a_depth_beyond_a_tower_names_both(bundled_clip):
    with pytest.raises(ValueError, match=r"^depth .*1\b.*\b4 .* 4 \(text\).* 6 \(image\).* 5"):
        NAPTuner(bundled_clip, NAMES, depth=5)
    assert NAPTuner(bundled_clip, NAMES, depth=4, n_ctx=2).prompts.tokens.shape == (4, 2, 96)


def test_a_resnet_takes_no_prompts_and_no_refiners():
    with pytest.raises(ValueError, match=r"^clip.*nap .* ModifiedResNet"):
        NAPTuner(resnet(), NAMES)


def test_a_hugging_face_text_tower_takes_no_text_refiners():
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**SMALL)
    config = transformers.BertConfig(
        vocab_size=49408,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        pad_token_id=0,
        max_position_embeddings=80,
    )
    model.text = HFTextEncoder(
        "never-downloaded", 16, config=config, pooler_type="mean_pooler", proj_type="mlp"
    )
    model.context_length = 77
    clip = load_clip(model.eval())
    with pytest.raises(ValueError, match=r"^clip.*nap .*text layers"):
        NAPTuner(clip, NAMES, text_refiners=True)

    class Refined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.zeros(3, 24))
            self.text_refiners = nn.ModuleList([nn.Identity()])

        def values(self) -> PromptValues:
            return PromptValues(self.tokens)

    for engine in ("fast", "reference"):
        with pytest.raises(ValueError, match=r"^refiners .*None .*text tower"):
            PromptedCLIP(clip, NAMES, Refined(), engine=engine)


def test_a_prompt_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"^classnames.*74 .*n_ctx"):
        NAPTuner(clip_of(), NAMES, n_ctx=74)
