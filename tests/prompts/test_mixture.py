"""The router and the mixture: formulas, start values, what both engines make of them."""

import math

import pytest
import torch
from torch import nn

from fastprompt.prompts.mixture import MixtureHead, PlainMixtureHead, PromptRouter

B, C, K, D = 4, 5, 3, 16
EXACT = 1e-10
MIXES = pytest.mark.parametrize("mix", ["normalized", "raw"])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach() - b.detach()).norm() / b.detach().norm())


def perturb(module: nn.Module, std: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p += std * normal(*p.shape, seed=100 + i, dtype=p.dtype)
    return module


def head_of(mix: str = "normalized", temperature: float = 1.0, k: int = K) -> MixtureHead:
    """A head none of whose tensors is at its start value."""
    router = perturb(PromptRouter(D, k, seed=1)).double()
    return MixtureHead(router, temperature=temperature, mix=mix)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def inputs(k: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image features of length 1, text features of any, a scale; all with gradients."""
    image, text = unit(normal(B, D, seed=1)), 3 * normal(k, C, D, seed=2)
    scale = torch.tensor(14.3, dtype=torch.float64)
    return tuple(x.requires_grad_() for x in (image, text, scale))


def slow(head: MixtureHead, image, text, scale) -> torch.Tensor:
    """One image and class at a time."""
    rows = []
    for f in image:
        z = head.router(f[None])[0] / head.temperature
        w = z.exp() / z.exp().sum()
        row = []
        for c in range(text.shape[1]):
            each = [unit(t) if head.mix == "normalized" else t for t in text[:, c]]
            row.append(scale * (f * unit(sum(w[k] * t for k, t in enumerate(each)))).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


# ---- the router ------------------------------------------------------------------------------


def test_a_router_equals_its_formula():
    router, x = perturb(PromptRouter(D, K, seed=2)).double(), normal(B, D, seed=3)
    centered = x - x.mean(dim=1, keepdim=True)
    x_hat = centered / (centered.square().mean(dim=1, keepdim=True) + router.norm.eps).sqrt()
    inner = (x_hat * router.norm.weight + router.norm.bias) @ router.first.weight.T
    inner = inner + router.first.bias
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    wanted = inner @ router.second.weight.T + router.second.bias
    assert relative(router(x), wanted) <= 1e-12


@pytest.mark.parametrize(("width", "hidden", "wanted"), [(16, None, 4), (3, None, 1), (16, 7, 7)])
def test_a_routers_widths(width, hidden, wanted):
    router = PromptRouter(width, K, hidden=hidden)
    assert router.first.weight.shape == (wanted, width)
    assert router.second.weight.shape == (K, wanted)


def test_a_routers_last_layer_starts_at_zero_and_can_leave_it():
    router = PromptRouter(D, K, seed=1)
    x = normal(B, D, seed=3, dtype=torch.float32)
    assert not router(x).any()
    bound = D**-0.5
    for p in (router.first.weight, router.first.bias):
        assert p.any()
        assert p.abs().max() <= bound
    (router(x) * normal(B, K, seed=4, dtype=torch.float32)).sum().backward()
    assert router.second.weight.grad.norm() > 1e-6
    assert router.second.bias.grad.norm() > 1e-6


def test_the_seed_alone_decides_a_routers_start():
    torch.manual_seed(1)
    first = PromptRouter(D, K, seed=5).state_dict()
    torch.manual_seed(2)
    again, other = (PromptRouter(D, K, seed=s).state_dict() for s in (5, 6))
    assert all(torch.equal(again[k], v) for k, v in first.items())
    assert not torch.equal(other["first.weight"], first["first.weight"])


def test_a_router_takes_features_of_any_precision():
    router, x = perturb(PromptRouter(D, K)), normal(B, D, seed=3)
    out = router(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, router(x.float()))


# ---- the mixture -----------------------------------------------------------------------------


@MIXES
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("k", [1, K], ids=["one_prompt", "three_prompts"])
def test_heads_equal_their_formula(mix, temperature, k):
    """Logits and all gradients, of the head that never builds ``[B, C, D]`` and of the other."""
    head, tensors = head_of(mix, temperature, k), inputs(k)
    learnable = [*tensors, *head.parameters()]
    wanted = slow(head, *tensors)
    weight = normal(B, C, seed=9)
    gradients = torch.autograd.grad((wanted * weight).sum(), learnable)
    prepared = head.prepare(tensors[1].detach())
    for logits in (
        head(*tensors),
        head(*tensors, *prepared),
        PlainMixtureHead(head)(*tensors),
    ):
        assert relative(logits, wanted) <= EXACT
        found = torch.autograd.grad((logits * weight).sum(), learnable)
        for ours, plain in zip(found, gradients, strict=True):
            if k == 1 and plain.norm() < 1e-12:  # a router of one prompt has nothing to say
                assert ours.norm() < 1e-12
                continue
            assert plain.norm() > 1e-6
            assert relative(ours, plain) <= EXACT


@MIXES
def test_what_is_prepared_has_no_graph_and_is_of_the_text_alone(mix):
    head, (_, text, _) = head_of(mix), inputs()
    prepared = head.prepare(text.detach())
    assert prepared
    assert not any(t.requires_grad for t in prepared)
    perturb(head.router)
    again = head.prepare(text.detach())
    assert all(torch.equal(a, b) for a, b in zip(prepared, again, strict=True))
    assert PlainMixtureHead(head).prepare(text) == ()


def test_the_two_ways_to_mix_differ():
    tensors = inputs()
    normalized, raw = (head_of(mix)(*tensors) for mix in ("normalized", "raw"))
    assert relative(normalized, raw) > 1e-3
    # not where the tower's features have one length
    image, text, scale = tensors
    normalized, raw = (head_of(mix)(image, 2 * unit(text), scale) for mix in ("normalized", "raw"))
    assert relative(normalized, raw) <= EXACT


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_weights_are_the_softmax_at_a_temperature(temperature):
    head, (image, _, _) = head_of(temperature=temperature), inputs()
    z = head.router(image) / temperature
    wanted = z.exp() / z.exp().sum(dim=1, keepdim=True)
    for of in (head, PlainMixtureHead(head)):
        assert relative(of.weights(image), wanted) <= 1e-12
        assert (of.weights(image).sum(dim=1) - 1).abs().max() < 1e-12
    assert relative(wanted[0], wanted[1]) > 1e-3


def test_a_temperature_near_zero_picks_and_a_high_one_averages():
    image, text, scale = inputs()
    cold, hot = head_of(temperature=1e-5), head_of(temperature=1e8)
    picked = cold.router(image).argmax(dim=1)
    one = scale * (image[:, None] * unit(text)[picked]).sum(dim=2)
    average = scale * image @ unit(unit(text).mean(dim=0)).T
    for head in (cold, PlainMixtureHead(cold)):
        assert relative(head(image, text, scale), one) <= 1e-6
    for head in (hot, PlainMixtureHead(hot)):
        assert relative(head(image, text, scale), average) <= 1e-6


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PromptRouter(D, 0), "^n_prompts .*1.*0"),
        (lambda: PromptRouter(D, K, hidden=0), "^hidden .*1.*0"),
        (lambda: head_of("mean"), "^mix .*'raw'.*'mean'"),
        (lambda: head_of(temperature=0), "^temperature .*0.*0"),
        (lambda: head_of(temperature=-1.0), "^temperature .*-1.0"),
        (lambda: head_of(temperature=math.nan), "^temperature .* nan"),
    ],
    ids=["no_prompts", "no_width", "mix", "temperature_0", "temperature_below", "temperature_nan"],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
