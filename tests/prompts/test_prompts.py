"""What learns: start values, seeds, and the formulas."""

import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.models import SMALL, small_model
from torch import nn

from fastprompt import load_clip
from fastprompt.prompts.context import TextContext
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.prompts.mixture import PromptMixture
from fastprompt.prompts.refiners import TokenRefiner

DEPTH, M, TEXT, IMAGE = 3, 4, 24, 32
C, K, FEATURES = 5, 3, 16


def deep(**options) -> DeepPrompts:
    return DeepPrompts(DEPTH, M, TEXT, IMAGE, **options)


def mixture(**options) -> PromptMixture:
    return PromptMixture(K, M, TEXT, FEATURES, **options)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def perturb(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p += 0.3 * normal(*p.shape, seed=100 + i)
    return module


BUILDERS = {
    "text_context": lambda seed: TextContext(M, TEXT, seed=seed),
    "own_contexts": lambda seed: TextContext(M, TEXT, classes=C, seed=seed),
    "mixture": lambda seed: mixture(seed=seed),
    "deep_prompts": lambda seed: deep(seed=seed),
    "image_to_text": lambda seed: deep(seed=seed, coupling="image-to-text"),
    "with_refiners": lambda seed: deep(seed=seed, refiners=2),
    "refiner": lambda seed: TokenRefiner(IMAGE, seed=seed),
    "linear_refiner": lambda seed: TokenRefiner(IMAGE, start="linear", seed=seed),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_the_seed_alone_decides_the_start_values(build):
    torch.manual_seed(1)
    first = build(5).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = build(5).state_dict(), build(6).state_dict()
    assert all(torch.equal(again[k], v) for k, v in first.items())
    # not LayerNorm's scale, which starts at one
    drawn = [k for k, v in first.items() if v.any() and not bool((v == 1).all())]
    assert drawn
    assert not any(torch.equal(other[k], first[k]) for k in drawn)
    if not list(build(5).children()):  # the refiners' nn.Linear layers draw before they are set
        assert torch.equal(torch.get_rng_state(), before)


def test_text_context_is_small_noise():
    prompts = TextContext(64, 512, seed=1)
    # 32,768 draws: mean and deviation within four standard errors
    error = 0.02 / prompts.tokens.numel() ** 0.5
    assert prompts.tokens.mean().abs() < 4 * error
    assert (prompts.tokens.std() - 0.02).abs() < 4 * error / 2**0.5
    values = prompts.values()
    assert values.context is prompts.tokens
    assert values.deep is None
    assert values.visual is None


@pytest.mark.parametrize("words", [1, M - 1, M])
def test_start_values_come_first_and_noise_behind(words):
    start = normal(words, TEXT, seed=9).requires_grad_()
    noise, context = TextContext(M, TEXT, seed=2).tokens, TextContext(M, TEXT, seed=2, start=start)
    assert torch.equal(context.tokens[:words], start)
    assert torch.equal(context.tokens[words:], noise[words:])
    assert context.tokens.is_leaf
    plain, prompts = deep(seed=2).tokens, deep(seed=2, start=start).tokens
    assert torch.equal(prompts[0, :words], start)
    assert torch.equal(prompts[0, words:], plain[0, words:])
    assert torch.equal(prompts[1:], plain[1:])  # the deeper layers start from noise


@pytest.mark.parametrize("words", [1, M])
def test_each_class_starts_from_the_words_and_noise_of_its_own(words):
    start = normal(words, TEXT, seed=9)
    noise = TextContext(M, TEXT, classes=C, seed=2).tokens
    tokens = TextContext(M, TEXT, classes=C, seed=2, start=start).tokens
    assert tokens.shape == (C, M, TEXT)
    assert all(torch.equal(own[:words], start) for own in tokens)
    assert torch.equal(tokens[:, words:], noise[:, words:])
    assert not torch.equal(noise[0], noise[1])
    values = TextContext(M, TEXT, classes=C).values()
    assert values.context.shape == (C, M, TEXT)
    assert values.deep is None
    assert values.visual is None


@pytest.mark.parametrize("words", [0, 1, M])
def test_prompts_of_a_mixture_never_start_alike(words):
    """Alike, they would get the same gradients and stay alike."""
    start = normal(words, TEXT, seed=9).requires_grad_()
    noise = mixture(seed=2).tokens
    tokens = mixture(seed=2, start=start if words else None).tokens
    assert tokens.shape == (K, M, TEXT)
    assert tokens.is_leaf
    assert torch.equal(tokens[0, :words], start)  # the first is the words themselves
    if words:
        for k in range(1, K):
            away = tokens[k, :words] - start
            torch.testing.assert_close(away, noise[k, :words], rtol=0, atol=1e-6)
    assert torch.equal(tokens[:, words:], noise[:, words:])
    for k in range(K):
        assert all((tokens[k] - tokens[j]).norm() > 0.01 for j in range(k))


def test_a_mixture_puts_its_tokens_into_the_text_tower_alone():
    prompts = mixture(temperature=0.5, mix="raw", hidden=7, seed=1)
    values = prompts.values()
    assert values.context is prompts.tokens
    assert values.deep is None
    assert values.visual is None
    assert prompts.head.temperature == 0.5
    assert prompts.head.mix == "raw"
    router = prompts.head.router
    assert router.first.weight.shape == (7, FEATURES)
    assert router.second.weight.shape == (K, 7)
    assert {name for name, _ in prompts.named_parameters()} == {
        "tokens",
        *(f"head.router.{m}.{p}" for m in ("norm", "first", "second") for p in ("weight", "bias")),
    }


def test_maps_start_as_linear_layers_do():
    prompts = DeepPrompts(4, 2, 512, 64, seed=3)
    bound = 512**-0.5
    for p in (prompts.map_weight, prompts.map_bias):
        assert p.abs().max() <= bound
        assert p.abs().max() > 0.9 * bound
        assert p.min() < 0 < p.max()
    assert prompts.map_weight.shape == (4, 64, 512)
    assert prompts.map_bias.shape == (4, 1, 64)
    # each layer has a map of its own
    assert not torch.equal(prompts.map_weight[0], prompts.map_weight[1])


def test_maps_may_start_as_copies_of_one_layer():
    """Those behind the first layer, as in MaPLe."""
    plain, copies = deep(seed=3), deep(seed=3, map_start="copies")
    for name, value in copies.named_parameters():
        own = getattr(plain, name)
        if name.startswith("map"):
            assert torch.equal(value[:2], own[:2])
            assert torch.equal(value[2], own[1])
            assert not torch.equal(own[2], own[1])
        else:
            assert torch.equal(value, own)
    assert DeepPrompts(1, M, TEXT, IMAGE, map_start="copies").map_weight.shape[0] == 1
    with pytest.raises(ValueError, match=r"^map_start .*'copies'.*'equal'"):
        deep(map_start="equal")


def test_visual_prompts_equal_a_plain_loop():
    prompts = perturb(deep(seed=4)).double()
    parameters = [prompts.tokens, prompts.map_weight, prompts.map_bias]
    slow = torch.stack(
        [
            F.linear(tokens, weight, bias[0])
            for tokens, weight, bias in zip(*parameters, strict=True)
        ]
    )
    fast = prompts.visual()
    assert fast.shape == (DEPTH, M, IMAGE)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-13)
    weight = normal(DEPTH, M, IMAGE, seed=8).double()
    for ours, plain in zip(
        torch.autograd.grad((fast * weight).sum(), parameters),
        torch.autograd.grad((slow * weight).sum(), parameters),
        strict=True,
    ):
        assert plain.norm() > 1e-6
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-13)


def test_deep_prompts_go_where_they_belong():
    prompts = deep(seed=1)
    values = prompts.values()
    assert torch.equal(values.context, prompts.tokens[0])
    assert torch.equal(values.deep, prompts.tokens[1:])
    assert torch.equal(values.visual, prompts.visual())
    shallow = DeepPrompts(1, M, TEXT, IMAGE).values()
    assert shallow.deep.shape == (0, M, TEXT)
    assert shallow.visual.shape == (1, M, IMAGE)


def test_prompts_mapped_from_image_to_text_equal_a_plain_loop():
    prompts = perturb(deep(seed=4, coupling="image-to-text")).double()
    values, learned = prompts.values(), list(prompts.parameters())
    assert len(learned) == 6
    assert torch.equal(values.context, prompts.tokens[0])
    first = F.linear(prompts.tokens[0], prompts.map_weight[0], prompts.map_bias[0, 0])
    visual = torch.stack([first, *prompts.image_tokens])
    backs = zip(prompts.image_tokens, prompts.back_weight, prompts.back_bias, strict=True)
    texts = torch.stack([F.linear(tokens, weight, bias[0]) for tokens, weight, bias in backs])
    assert values.deep.shape == (DEPTH - 1, M, TEXT)
    for fast, slow in ((values.visual, visual), (values.deep, texts)):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-13)
    total = (values.visual.square().sum() + values.deep.square().sum()) / 2
    plain = (visual.square().sum() + texts.square().sum()) / 2
    for ours, theirs in zip(
        torch.autograd.grad(total, learned), torch.autograd.grad(plain, learned), strict=True
    ):
        assert theirs.norm() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    # one layer has no other direction
    alone = [DeepPrompts(1, M, TEXT, IMAGE, coupling=c) for c in ("text-to-image", "image-to-text")]
    states = [prompts.state_dict() for prompts in alone]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    with pytest.raises(ValueError, match=r"^coupling .*'image-to-text'.*'both'"):
        deep(coupling="both")


def test_refiners_are_as_many_as_asked_for_and_unlike():
    assert deep().refiners is None
    prompts = deep(refiners=3)
    assert len(prompts.refiners) == 3
    weights = [r.first.weight for r in prompts.refiners]
    assert not torch.equal(weights[0], weights[1])
    assert len(list(prompts.parameters())) == 3 + 3 * 4


def test_a_refiner_starts_as_the_identity():
    refiner, x = TokenRefiner(IMAGE, seed=2), normal(2, 5, IMAGE, seed=3)
    assert torch.equal(refiner(x), x)
    assert refiner.first.weight.any()
    refiner(x).square().sum().backward()
    assert refiner.second.weight.grad.norm() > 1e-6  # so that it can leave the identity


def test_a_refiner_may_start_as_linear_layers_do():
    refiner, x = TokenRefiner(IMAGE, start="linear", seed=2), normal(2, 5, IMAGE, seed=3)
    for layer, fan_in in ((refiner.first, IMAGE), (refiner.second, 2 * IMAGE)):
        for p in (layer.weight, layer.bias):
            assert p.abs().max() <= fan_in**-0.5
            assert p.min() < 0 < p.max()
        assert layer.weight.abs().max() > 0.9 * fan_in**-0.5
    assert (refiner(x) - x).norm() > 1e-2 * x.norm()
    # the first layer's start values are those of the identity
    assert torch.equal(refiner.first.weight, TokenRefiner(IMAGE, seed=2).first.weight)
    prompts = deep(refiners=2, text_refiners=3, refiner_start="linear")
    assert [r.second.weight.shape[0] for r in prompts.refiners] == [IMAGE] * 2
    assert [r.second.weight.shape[0] for r in prompts.text_refiners] == [TEXT] * 3
    assert all(r.second.weight.any() for r in (*prompts.refiners, *prompts.text_refiners))


def test_an_unknown_start_of_a_refiner_is_refused():
    with pytest.raises(ValueError, match=r"^start .*'linear'.*'zero'"):
        TokenRefiner(IMAGE, start="zero")


def test_refiners_leave_the_other_start_values_alone():
    plain, refined = deep(seed=3), deep(seed=3, refiners=2, text_refiners=2)
    for name, value in plain.state_dict().items():
        assert torch.equal(refined.state_dict()[name], value)


@pytest.mark.parametrize("start", ["identity", "linear"])
def test_a_refiner_equals_its_formula(start):
    refiner = perturb(TokenRefiner(IMAGE, start=start, seed=2)).double()
    x = normal(2, 5, IMAGE, seed=3).double().requires_grad_()
    w1, b1 = refiner.first.weight, refiner.first.bias
    w2, b2 = refiner.second.weight, refiner.second.bias
    hidden = x @ w1.T + b1
    assert w1.shape == (2 * IMAGE, IMAGE)
    slow = x + hidden.where(hidden > 0, torch.zeros_like(hidden)) @ w2.T + b2
    torch.testing.assert_close(refiner(x), slow, rtol=1e-12, atol=1e-13)
    assert (refiner(x) - x).norm() > 1e-3
    for ours, plain in zip(
        torch.autograd.grad(refiner(x).square().sum(), [x, w1, b1, w2, b2]),
        torch.autograd.grad(slow.square().sum(), [x, w1, b1, w2, b2]),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)


def test_a_refiner_computes_in_the_tokens_precision():
    refiner = perturb(TokenRefiner(IMAGE, seed=2))
    x = normal(2, 5, IMAGE, seed=3)
    low = refiner(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, copy.deepcopy(refiner).bfloat16()(x.bfloat16()))
    assert refiner.first.weight.dtype == torch.float32  # what learns stays as it is
    low.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.norm() > 0 for p in refiner.parameters())


# ---- prompts that fit a model ---------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, 1])
def test_prompts_for_a_model_have_its_widths(small_clip, depth):
    start = normal(2, TEXT, seed=9)
    prompts = DeepPrompts.for_clip(small_clip, M, depth=depth, refiners=True, seed=4, start=start)
    layers = depth or 2  # all that both towers have
    by_hand = DeepPrompts(layers, M, TEXT, IMAGE, refiners=layers - 1, seed=4, start=start)
    assert prompts.state_dict().keys() == by_hand.state_dict().keys()
    assert all(torch.equal(v, prompts.state_dict()[k]) for k, v in by_hand.state_dict().items())
    assert DeepPrompts.for_clip(small_clip, M).refiners is None


@pytest.mark.parametrize("depth", [0, 3])
def test_a_depth_that_a_model_lacks_is_refused(small_clip, depth):
    with pytest.raises(ValueError, match=rf"^depth .*1\.\.2.* {depth}"):
        DeepPrompts.for_clip(small_clip, M, depth=depth)


def test_a_tower_that_takes_no_deep_prompts_is_refused():
    resnet = copy.deepcopy(SMALL)
    resnet["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    with pytest.raises(ValueError, match=r"^clip: .*deep.*ModifiedResNet"):
        DeepPrompts.for_clip(load_clip(open_clip.CLIP(**resnet)), M)
    first = small_model(open_clip.CustomTextCLIP, pool_type="first")
    with pytest.raises(ValueError, match=r"^clip: .*deep.*causal"):
        DeepPrompts.for_clip(load_clip(first), M)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: TextContext(0, TEXT), "n_ctx"),
        (lambda: TextContext(M, TEXT, classes=0), "classes"),
        (lambda: PromptMixture(0, M, TEXT, FEATURES), "n_prompts"),
        (lambda: PromptMixture(K, 0, TEXT, FEATURES), "n_ctx"),
        (lambda: mixture(hidden=0), "hidden"),
        (lambda: DeepPrompts(0, M, TEXT, IMAGE), "depth"),
        (lambda: DeepPrompts(DEPTH, 0, TEXT, IMAGE), "n_ctx"),
    ],
    ids=["context", "classes", "prompts", "mixture_context", "router", "depth", "deep_context"],
)
def test_counts_below_one_are_refused(build, name):
    with pytest.raises(ValueError, match=f"^{name} .*1.*0"):
        build()
