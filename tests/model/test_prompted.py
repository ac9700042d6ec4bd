"""`PromptedCLIP`: two engines and one mathematics, its settings, the classifier it leaves."""

import copy
from contextlib import contextmanager
from functools import cache

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.engine_checks import TEMPLATES
from helpers.models import resnet, small_model
from torch import nn

from fastprompt import FrozenCLIP, load_clip
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.context import TextContext
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.prompts.refiners import TokenRefiner
from fastprompt.prompts.values import PromptValues
from fastprompt.tuning.online_pgd import OnlinePGD

NAMES = ["cat", "very_small dog", "red circle", "fish"]
EXACT, SINGLE = 1e-10, 1e-5
SMALLEST = 1e-6  # norm of a gradient that is there


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||``."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float((a.detach() - b.detach()).norm() / b.detach().norm())


def perturb(module: nn.Module, std: float = 0.1, seed: int = 5) -> nn.Module:
    """Every learnable tensor away from its start value: a refiner's zeros would hide it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += std * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


CLIPS = {
    "clip": {},
    "custom_text": {"layout": open_clip.CustomTextCLIP},
    "not_causal": {"layout": open_clip.CustomTextCLIP, "no_causal_mask": True},
}


@cache
def clip_of(name: str, dtype: torch.dtype = torch.float64) -> FrozenCLIP:
    """Small random models, and the bundled one."""
    if name == "tiny-shapes":
        return load_clip("tiny-shapes").to(dtype)
    return load_clip(small_model(**CLIPS[name]).to(dtype))


def text_context(clip: FrozenCLIP) -> nn.Module:
    width = clip.text_parts.width
    return perturb(TextContext(3, width, seed=1).to(clip.dtype))


def deep_prompts(clip: FrozenCLIP, depth: int = 2, refiners: bool = True) -> nn.Module:
    visual = clip.model.visual
    blocks = len(visual.transformer.resblocks)
    return perturb(
        DeepPrompts(
            depth,
            3,
            clip.text_parts.width,
            visual.conv1.out_channels,
            refiners=blocks - 1 if refiners else 0,
            seed=2,
        ).to(clip.dtype)
    )


def pair_of(clip: FrozenCLIP, build=deep_prompts, **options) -> tuple[PromptedCLIP, PromptedCLIP]:
    """Fast and reference engine, each with prompts of its own that start alike."""
    fast = PromptedCLIP(clip, NAMES, build(clip), **options)
    options.pop("class_chunk", None)
    return fast, PromptedCLIP(clip, NAMES, build(clip), engine="reference", **options)


def pixels(n: int = 3, size: int = 48, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(3)).to(dtype)


def labels(n: int = 3) -> torch.Tensor:
    return torch.arange(n) % len(NAMES)


def gradients(model: PromptedCLIP, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss's gradient in every learnable tensor, each of them there.

    The prompts of each layer count for themselves: one that is forgotten would hide in the norm.
    """
    names, tensors = zip(*model.prompts.named_parameters(), strict=True)
    out = dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))
    for name, grad in out.items():
        parts = grad if grad.ndim == 3 else grad[None]
        for i, part in enumerate(parts):
            assert part.norm() > SMALLEST, f"no gradient reaches {name}[{i}]"
    return out


def agree(fast: PromptedCLIP, reference: PromptedCLIP, tolerance: float, n: int = 3) -> None:
    """Features, logits, loss and gradients of both engines, on ``n`` images."""
    x, y = pixels(n, dtype=fast.clip.dtype), labels(n)
    errors = {
        "class features": relative(fast.class_features(), reference.class_features()),
        "image features": relative(fast.image_features(x), reference.image_features(x)),
    }
    logits = fast(x), reference(x)
    losses = [F.cross_entropy(z, y) for z in logits]
    errors |= {"logits": relative(*logits), "loss": relative(*losses)}
    ours, theirs = (gradients(m, z) for m, z in zip((fast, reference), losses, strict=True))
    assert ours.keys() == theirs.keys()
    errors |= {name: relative(ours[name], theirs[name]) for name in ours}
    assert max(errors.values()) <= tolerance, errors


# ---- the engines agree ----------------------------------------------------------------------


@pytest.mark.parametrize("build", [text_context, deep_prompts])
@pytest.mark.parametrize("name", [*CLIPS, "tiny-shapes"])
def test_engines_agree_in_float64(name, build):
    agree(*pair_of(clip_of(name), build), EXACT)


def smooth_prompts(clip: FrozenCLIP) -> nn.Module:
    """Prompts whose refiners stay off the ReLU's kink, where rounding alone turns a unit on."""
    prompts = deep_prompts(clip)
    with torch.no_grad():
        for refiner in prompts.refiners:
            bias = refiner.first.bias
            on = torch.arange(len(bias)) % 2 == 0
            bias += torch.where(on, 80.0, -80.0).to(bias.dtype)
            refiner.second.weight *= 0.03  # the units that are on are large now
    return prompts


def nearest_to_the_kink(model: PromptedCLIP, x: torch.Tensor) -> float:
    """The smallest input of a refiner's ReLU."""
    found = []

    def look(refiner, inputs):
        hidden = F.linear(inputs[0], refiner.first.weight, refiner.first.bias)
        found.append(float(hidden.detach().abs().min()))

    handles = [r.register_forward_pre_hook(look) for r in model.prompts.refiners]
    model.image_features(x)
    for handle in handles:
        handle.remove()
    return min(found)


@pytest.mark.parametrize("build", [text_context, smooth_prompts])
@pytest.mark.parametrize("name", [*CLIPS, "tiny-shapes"])
def test_engines_agree_in_float32(name, build):
    """On 16 images: the gradient of a few can be a small difference of large terms."""
    fast, reference = pair_of(clip_of(name, torch.float32), build)
    agree(fast, reference, SINGLE, n=16)
    if build is smooth_prompts:
        assert nearest_to_the_kink(fast, pixels(16, dtype=torch.float32)) > 1e-2


OPTIONS = {
    "class_chunk": {"class_chunk": 1},
    "name_in_the_middle": {"template": TEMPLATES["middle"]},
    "name_in_front": {"template": TEMPLATES["front"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_engines_agree_with_other_settings(options):
    agree(*pair_of(clip_of("clip"), **options), EXACT)


def test_engines_agree_on_visual_prompts_of_a_later_layer():
    def build(clip):
        return deep_prompts(clip, depth=1, refiners=False)

    last = pair_of(clip_of("clip"), build, layers=[1])
    agree(*last, EXACT)
    first = PromptedCLIP(clip_of("clip"), NAMES, build(clip_of("clip")))
    assert relative(last[0](pixels()), first(pixels())) > 1e-6


def test_engines_agree_on_clean_and_adversarial_images():
    fast, reference = pair_of(clip_of("clip"))
    x, adv = pixels(4), pixels(7)[4:]
    for model in (fast, reference):
        clean, attacked = model.pair(x, adv)
        assert relative(clean, model(x)) <= EXACT
        assert relative(attacked, model(adv)) <= EXACT
    for ours, theirs in zip(fast.pair(x, adv), reference.pair(x, adv), strict=True):
        assert relative(ours, theirs) <= EXACT
    prepared = fast.prepare()
    assert all(
        torch.equal(a, b)
        for a, b in zip(fast.pair(x, adv, prepared), fast.pair(x, adv), strict=True)
    )


def half_and_half(model: PromptedCLIP, x, adv, y, prepared=None) -> torch.Tensor:
    clean, attacked = model.pair(x, adv, prepared)
    return 0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(attacked, y)


@pytest.mark.parametrize("name", ["clip", "custom_text", "tiny-shapes"])
def test_whole_steps_agree(name):
    """Attack, loss, gradients and parameters, over three optimizer steps."""
    fast, reference = pair_of(clip_of(name))
    x, y, indices = pixels(), labels(), torch.arange(3)
    optimizers = [
        torch.optim.SGD(m.prompts.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        for m in (fast, reference)
    ]
    start = [p.detach().clone() for p in fast.prompts.parameters()]
    for step in range(3):
        # signs amplify rounding, but not that of float64
        for steps in (1, 2, 3) if step == 0 else (3,):
            adv, wanted = (
                OnlinePGD(m, "4/255", "2/255", steps, seed=1)(x, y, indices, draw=step).images
                for m in (fast, reference)
            )
            assert torch.equal(adv, wanted), f"step {step}, {steps} attack steps"
        assert not torch.equal(adv, x)
        losses = half_and_half(fast, x, adv, y, fast.prepare()), half_and_half(reference, x, adv, y)
        assert relative(*losses) <= EXACT
        both = [gradients(m, loss) for m, loss in zip((fast, reference), losses, strict=True)]
        for model, optimizer, grads in zip((fast, reference), optimizers, both, strict=True):
            for key, p in model.prompts.named_parameters():
                p.grad = grads[key]
            optimizer.step()
        errors = {key: relative(both[0][key], both[1][key]) for key in both[0]}
        assert max(errors.values()) <= EXACT, errors
    for p, q, before in zip(
        fast.prompts.parameters(), reference.prompts.parameters(), start, strict=True
    ):
        assert relative(p, q) <= EXACT
        assert relative(p, before) > 1e-6


def test_logits_are_what_they_are_defined_to_be():
    model = PromptedCLIP(clip_of("clip"), NAMES, deep_prompts(clip_of("clip")))
    x = pixels(2)
    image, text = model.image_features(x), model.class_features()
    torch.testing.assert_close(text.norm(dim=1), torch.ones(len(NAMES), dtype=torch.float64))
    scale = model.clip.model.logit_scale.exp()
    slow = [[scale * (f / f.norm()) @ t for t in text] for f in image]
    torch.testing.assert_close(
        model(x), torch.stack([torch.stack(row) for row in slow]), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("engine", "altered"), [("fast", False), ("reference", False), ("fast", True)]
)
def test_a_classifier_in_another_precision(engine, altered):
    """Also with visual prompts of a later layer, and if the model runs its own modules."""
    model = small_model()
    if altered:
        block = model.visual.transformer.resblocks[0]
        block.register_forward_hook(lambda m, a, out: 1.5 * out)
    clip = load_clip(model)
    prompts = perturb(DeepPrompts.for_clip(clip, 2, depth=1))
    classify = PromptedCLIP(clip, NAMES, prompts, layers=[1], engine=engine).classifier()
    images = torch.rand(2, 3, 48, 48)
    wide = classify.in_precision("fp64")
    assert wide(images.double()).dtype == torch.float64
    assert float((wide(images.double()) - classify(images)).abs().max()) < 1e-4
    assert clip.dtype == torch.float32
    assert len(wide.in_precision("fp32")(images)) == 2


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_resnet_takes_text_prompts(engine):
    clip = resnet()
    model = PromptedCLIP(clip, NAMES, text_context(clip), engine=engine)
    x, y = pixels(3, 64, torch.float32), labels()
    plain = F.normalize(clip.encode_image(x), dim=-1) @ model.class_features().T
    torch.testing.assert_close(model(x), clip.logit_scale * plain, rtol=1e-5, atol=1e-5)
    gradients(model, F.cross_entropy(model(x), y))
    adv = OnlinePGD(model, "4/255", "1/255", 2)(x, y, torch.arange(3)).images
    assert (adv - x).abs().max() > 0
    assert model.classifier()(x).shape == (3, len(NAMES))


def test_engines_agree_on_a_resnet():
    fast, reference = pair_of(resnet(), text_context)
    x = pixels(3, 64, torch.float32)
    assert relative(fast(x), reference(x)) <= SINGLE


def test_the_image_tower_of_a_zero_shot_classifier_is_the_engines(bundled_clip):
    x = pixels(dtype=torch.float32)
    fast, reference = (bundled_clip.zero_shot(NAMES, engine=e) for e in ("fast", "reference"))
    assert type(fast.image_tower) is not type(reference.image_tower)
    assert relative(fast(x), reference(x)) <= SINGLE
    with pytest.raises(ValueError, match=r"^engine .*'reference'.*'quick'"):
        bundled_clip.zero_shot(NAMES, engine="quick")


# ---- prepared ------------------------------------------------------------------------------


def test_prepared_holds_a_graph_and_hands_out_none():
    model = PromptedCLIP(clip_of("clip"), NAMES, deep_prompts(clip_of("clip")))
    prepared = model.prepare()
    text, visual = prepared.detached()
    assert prepared.text.requires_grad
    assert not text.requires_grad
    assert torch.equal(text, prepared.text)
    learned, fixed = ([*v.tokens, *sum(v.keys, ())] for v in (prepared.visual, visual))
    assert len(learned) == 2 + 2 * 2  # of two layers: tokens, key and value
    assert all(t.requires_grad for t in learned)
    assert not any(t.requires_grad for t in fixed)
    assert all(map(torch.equal, learned, fixed))
    assert not any(t.requires_grad for t in prepared.without_graph().values.deep)
    with model.frozen_prompts():
        assert not model.prepare().text.requires_grad
        assert not model(pixels()).requires_grad
    shallow = PromptedCLIP(clip_of("clip"), NAMES, text_context(clip_of("clip")))
    assert shallow.prepare().detached()[1] is None


# ---- the classifier -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_classifier_is_a_snapshot(engine):
    clip, x = clip_of("clip"), pixels()
    model = PromptedCLIP(clip, NAMES, deep_prompts(clip), engine=engine)
    classifier = model.classifier()
    before = model(x).detach()
    assert relative(classifier(x), before) <= EXACT
    generator = torch.Generator().manual_seed(6)
    # each learnable tensor alone: none of them is shared
    for name, p in model.prompts.named_parameters():
        kept = p.detach().clone()
        with torch.no_grad():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        assert relative(model(x), before) > 1e-4, f"{name} does nothing"
        assert relative(classifier(x), before) <= EXACT, f"{name} is shared"
        with torch.no_grad():
            p.copy_(kept)
    perturb(model.prompts, seed=8)
    assert relative(model.classifier()(x), model(x)) <= EXACT


def test_a_classifier_needs_no_gradient_but_in_the_pixels():
    clip = clip_of("clip")
    model = PromptedCLIP(clip, NAMES, deep_prompts(clip))
    classifier = model.classifier()
    assert len(classifier.refiners) == 1
    assert classifier.classnames == [n.replace("_", " ") for n in NAMES]
    assert not any(p.requires_grad for p in classifier.parameters())
    assert all(p.requires_grad for p in model.prompts.parameters())
    x = pixels().requires_grad_()
    (grad,) = torch.autograd.grad(classifier(x).square().sum(), x)
    assert grad.norm() > SMALLEST
    assert PromptedCLIP(clip, NAMES, text_context(clip)).classifier().refiners is None


@pytest.mark.peers
def test_torchattacks_runs_on_a_classifier(torchattacks):
    clip = clip_of("clip", torch.float32)
    classifier = PromptedCLIP(clip, NAMES, deep_prompts(clip)).classifier()
    x, y = pixels(4, dtype=torch.float32), labels(4)
    attack = torchattacks.PGD(classifier, eps=4 / 255, alpha=1 / 255, steps=3, random_start=False)
    adv = attack(x, y)
    assert (adv - x).abs().max() <= 4 / 255 + 1e-7
    assert F.cross_entropy(classifier(adv), y) > F.cross_entropy(classifier(x), y)


# ---- settings -------------------------------------------------------------------------------


@contextmanager
def no_work(clip: FrozenCLIP):
    """Fail where any layer of the model runs."""

    def refuse(module, *_):
        raise AssertionError(f"{type(module).__name__} ran before the arguments were checked")

    leaves = [m for m in clip.model.modules() if not list(m.children())]
    handles = [leaf.register_forward_pre_hook(refuse) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class RefinedContext(TextContext):
    """A text context with refiners for an image tower of two blocks."""

    def __init__(self, width: int, refiners: int = 1) -> None:
        super().__init__(2, width)
        self.refiners = nn.ModuleList(TokenRefiner(32) for _ in range(refiners))


REFUSED = {
    "engine": ({"engine": "slow"}, "^engine .*'reference'.*'slow'"),
    "precision": ({"precision": "int8"}, "^precision .*fp64.*'int8'"),
    "precision_of_the_reference": (
        {"precision": "fp64", "engine": "reference"},
        "^precision .*'fp32'.*engine='reference'.*'fp64'",
    ),
    "compiled_reference": ({"compile": True, "engine": "reference"}, "^compile .*'reference'"),
    "chunked_reference": ({"class_chunk": 2, "engine": "reference"}, "^class_chunk .*'reference'"),
    "class_chunk": ({"class_chunk": 0}, "^class_chunk .*1.*0"),
    "template": ({"template": "[ctx] a name"}, r"^template .*'\{\}'.*a name"),
    "layers": ({"layers": [0, 2]}, r"^layers .*0\.\.1.*\[0, 2\]"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_are_refused(options, message, small_clip):
    prompts = deep_prompts(small_clip)
    with no_work(small_clip), pytest.raises(ValueError, match=message):
        PromptedCLIP(small_clip, NAMES, prompts, **options)


ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])
MISFITS = {
    "too_deep": (lambda: DeepPrompts(3, 2, 24, 32), r"^depth .*2|^layers .*0\.\.1"),
    "text_width": (lambda: TextContext(2, 25), r"^context .*\[2, 24\].*\[2, 25\]"),
    "image_width": (lambda: DeepPrompts(2, 2, 24, 31), r"^prompts .*\[2, V, 32\].* 31"),
    "no_room": (lambda: TextContext(74, 24), "^classnames: 'very small dog'.* 74 .*n_ctx"),
    "refiners": (lambda: RefinedContext(24, 2), "^refiners .*1.*2"),
}


@ENGINES
@pytest.mark.parametrize(("build", "message"), MISFITS.values(), ids=MISFITS)
def test_prompts_that_do_not_fit_are_refused(engine, build, message, small_clip):
    prompts = build()
    with no_work(small_clip), pytest.raises(ValueError, match=message):
        PromptedCLIP(small_clip, NAMES, prompts, engine=engine)


@ENGINES
def test_text_prompts_deeper_than_the_text_tower_are_refused(engine):
    """The bundled towers have four text layers and six image layers."""
    clip = clip_of("tiny-shapes")
    too_deep = DeepPrompts(5, 2, 96, 192).double()
    # Also compares the towers with the model's own, which runs once for each model.
    assert PromptedCLIP(clip, NAMES, DeepPrompts(4, 2, 96, 192).double(), engine=engine)
    with no_work(clip), pytest.raises(ValueError, match=r"^depth .*4.*text tower"):
        PromptedCLIP(clip, NAMES, too_deep, engine=engine)


@ENGINES
def test_a_resnet_takes_neither_visual_prompts_nor_refiners(engine):
    clip = resnet()
    with no_work(clip), pytest.raises(ValueError, match=r"^clip: .*visual.*ModifiedResNet"):
        PromptedCLIP(clip, NAMES, DeepPrompts(1, 2, 24, 32), engine=engine)
    with no_work(clip), pytest.raises(ValueError, match=r"^clip: .*refiners.*ModifiedResNet"):
        PromptedCLIP(clip, NAMES, RefinedContext(24), engine=engine)


@ENGINES
@pytest.mark.parametrize("build", [text_context, deep_prompts])
def test_prompts_on_another_device_are_refused(engine, build, small_clip):
    prompts = build(small_clip).to("meta")
    with pytest.raises(ValueError, match=r"^prompts .*meta.*cpu"):
        PromptedCLIP(small_clip, NAMES, prompts, engine=engine)


def test_auto_takes_bf16_where_the_device_multiplies_it(small_clip, bf16_units):
    prompts = text_context(small_clip)
    low = PromptedCLIP(small_clip, NAMES, prompts)
    assert low.precision == "bf16"
    assert low.text.parts.dtype == low.image.dtype == torch.bfloat16
    assert low.classifier().precision == "bf16"
    assert PromptedCLIP(small_clip, NAMES, prompts, engine="reference").precision == "fp32"
    double = load_clip(small_model().double())
    prompts = text_context(double).double()
    assert PromptedCLIP(double, NAMES, prompts).precision == "fp64"


def test_a_zero_shot_classifier_keeps_the_weights_precision_unless_asked(small_clip, bf16_units):
    own, auto = (small_clip.zero_shot(NAMES, precision=p) for p in (None, "auto"))
    assert (own.precision, auto.precision) == ("fp32", "bf16")
    assert (own.image_tower.dtype, auto.image_tower.dtype) == (torch.float32, torch.bfloat16)
    x = pixels(2, dtype=torch.float32)
    assert auto(x).dtype == torch.float32
    for engine, wanted in (("fast", "bf16"), ("reference", "fp32")):
        classify = small_clip.zero_shot(NAMES, engine=engine, precision="fp32")
        assert classify.in_precision("auto").precision == wanted


def test_bf16_leaves_the_model_alone_and_costs_no_more_than_bf16_does():
    model = small_model()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    clip = load_clip(model)
    loaded = {k: v.clone() for k, v in clip.model.state_dict().items()}
    prompts = text_context(clip)
    low, full = (PromptedCLIP(clip, NAMES, prompts, precision=p) for p in ("bf16", "fp32"))
    x, y = pixels(16, dtype=torch.float32), labels(16)
    # what the precision costs open_clip's own modules, whose weights are cast as a whole
    exact = PromptedCLIP(copy.deepcopy(clip).double(), NAMES, prompts, engine="reference")
    plain = PromptedCLIP(copy.deepcopy(clip).bfloat16(), NAMES, prompts, engine="reference")

    def errors(model):
        image, text = model.image_features(x), model.class_features()
        wanted = exact.image_features(x), exact.class_features()
        return [relative(f.double(), w) for f, w in zip((image, text), wanted, strict=True)]

    for ours, theirs in zip(errors(low), errors(plain), strict=True):
        assert 1e-4 < ours <= 1.5 * theirs
    assert max(errors(full)) <= SINGLE
    logits = low(x)
    assert logits.dtype == torch.float32
    gradients(low, F.cross_entropy(logits, y))
    assert prompts.tokens.dtype == torch.float32
    adv = OnlinePGD(low, "4/255", "1/255", 1)(x, y, torch.arange(16)).images
    assert adv.dtype == torch.float32
    for left, before in ((clip.model.state_dict(), loaded), (model.state_dict(), state)):
        assert all(v.dtype == before[k].dtype for k, v in left.items())
        assert all(torch.equal(v, before[k]) for k, v in left.items())


def test_class_chunk_says_how_many_classes_at_once(small_clip):
    prompts = text_context(small_clip)

    def chunk(**options):
        return PromptedCLIP(small_clip, NAMES, prompts, **options).class_chunk

    assert chunk() == len(NAMES)
    assert chunk(class_chunk=3) == 3
    assert chunk(engine="reference") is None


def test_what_is_no_prompt_module_or_no_prompted_model(small_clip):
    with pytest.raises(TypeError, match=r"^prompts .*values\(\).*Linear"):
        PromptedCLIP(small_clip, NAMES, torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^model .*PromptedCLIP.*CLIPClassifier.*PGD"):
        OnlinePGD(small_clip.zero_shot(NAMES))
    with pytest.raises(TypeError, match=r"^layers .*range\(.* 2"):
        PromptedCLIP(small_clip, NAMES, DeepPrompts.for_clip(small_clip, 2), layers=2)
    attack = OnlinePGD(PromptedCLIP(small_clip, NAMES, TextContext(2, 24)))
    x, rows = torch.rand(2, 3, 48, 48), torch.arange(2)
    for wrong, match in (
        ((x, rows[:1], rows), r"^labels .*\[2\].*\[1\]"),
        ((x, rows, rows[:1]), r"^indices .*\[2\].*\[1\]"),
        ((x[0], rows, rows), r"^images .*\[B, C, H, W\]"),
    ):
        with pytest.raises(ValueError, match=match):
            attack(*wrong)


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_each_class_may_have_a_context_of_its_own(small_clip, engine):
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(4)
            self.tokens = torch.nn.Parameter(torch.randn(len(NAMES), 2, 24, generator=generator))

        def values(self) -> PromptValues:
            return PromptValues(self.tokens)

    prompts = Own()
    model = PromptedCLIP(small_clip, NAMES, prompts, engine=engine, class_specific=True)
    own = model.class_features()
    for c, name in enumerate(NAMES):
        alone = TextContext(2, 24)
        alone.tokens.data.copy_(prompts.tokens[c])
        expected = PromptedCLIP(small_clip, [name], alone, engine=engine).class_features()[0]
        torch.testing.assert_close(own[c], expected, rtol=0, atol=1e-5)


def test_under_autocast(small_clip):
    model = PromptedCLIP(small_clip, NAMES, deep_prompts(small_clip))
    x, y = pixels(dtype=torch.float32), labels()
    exact = gradients(model, F.cross_entropy(model(x), y))
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x).float(), y)
    for name, grad in gradients(model, loss).items():
        assert relative(grad, exact[name]) < 0.1, name
