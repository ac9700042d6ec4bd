"""Token refiners in the text towers: on every token but the context's, whatever the path."""

from collections.abc import Iterable, Sequence
from typing import Any

import open_clip
import pytest
import torch
from helpers.engine_checks import (
    EXACT,
    NAMES,
    TEMPLATES,
    agree,
    deep_shape,
    frozen,
    no_work,
    noise,
    relative,
    text_clip,
)
from helpers.models import small_model
from torch import Tensor, nn

from fastprompt import FrozenCLIP
from fastprompt._utils.attention import plain_attention
from fastprompt.prompts.refiners import TokenRefiner
from fastprompt.towers import ReferenceTextTower, TextPath, TextTower
from fastprompt.towers.text_chunks import recomputed

CUSTOM = open_clip.CustomTextCLIP
POSITIONS = tuple(TEMPLATES)
ENGINES = (TextTower, ReferenceTextTower)
# every path: (settings of the text tower, the path)
CLIPS = {
    "causal": ({}, TextPath.SHARED_PREFIX),
    "causal-last": ({"layout": CUSTOM, "pool_type": "last"}, TextPath.SHARED_PREFIX),
    "padding-masked": (
        {"layout": CUSTOM, "no_causal_mask": True, "pad_mask": True},
        TextPath.WHOLE_SEQUENCES,
    ),
    "attends-to-padding": ({"layout": CUSTOM, "no_causal_mask": True}, TextPath.WHOLE_SEQUENCES),
    "reads-padding": (
        {"layout": CUSTOM, "no_causal_mask": True, "pool_type": "last"},
        TextPath.WHOLE_SEQUENCES,
    ),
}
# every kind of prompt: (options, depth)
KINDS = {
    "shared": ({}, 1),
    "shared-deep": ({}, 2),
    "shared-deepest": ({}, 3),
    "several": ({"n_prompts": 2}, 1),
    "several-deep": ({"n_prompts": 2}, 3),
    "class-specific": ({"class_specific": True}, 1),
    "several-class-specific-deep": ({"class_specific": True, "n_prompts": 2}, 2),
}


def make_refiners(clip: FrozenCLIP, seed: int = 0, *, perturbed: bool = True) -> nn.ModuleList:
    """One before each text block but the first; when perturbed nothing in them is zero."""
    parts = clip.text_parts
    out = nn.ModuleList(
        TokenRefiner(parts.width, seed=seed + i) for i in range(parts.layers - 1)
    ).to(clip.dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in out.parameters() if perturbed else ():
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return out


def prompts_of(tower: TextTower, depth: int) -> tuple[Tensor, Tensor | None]:
    context = noise(*tower.context_shape, seed=1)
    return context, noise(*deep_shape(tower, depth), seed=2) if depth > 1 else None


def gradients(out: Tensor, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of a random sum of ``out``; each of them is there."""
    weight = noise(*out.shape, seed=99, dtype=out.dtype).detach()
    grads = torch.autograd.grad((out * weight).sum(), list(tensors))
    assert min(float(g.norm()) for g in grads) > 1e-6
    return list(grads)


def refined_engines(clip: FrozenCLIP, depth: int = 1, **options: Any) -> TextTower:
    """Compare both towers: features, and the gradient of every prompt and refiner parameter."""
    chunk = options.pop("class_chunk", None)
    fast = TextTower(clip, NAMES, 3, class_chunk=chunk, **options)
    reference = ReferenceTextTower(clip, NAMES, 3, **options)
    context, deep = prompts_of(fast, depth)
    refiners = make_refiners(clip)
    prompts = {"context": context} if deep is None else {"context": context, "deep": deep}
    agree([lambda t=t: t(context, deep, refiners) for t in (fast, reference)], prompts, EXACT)
    outs = [tower(context, deep, refiners) for tower in (fast, reference)]
    # they do something
    assert relative(fast(context, deep), outs[0]) > 1e-2
    names, parameters = zip(*refiners.named_parameters(), strict=True)
    assert len(names) == 4 * (clip.text_parts.layers - 1)
    for name, got, wanted in zip(names, *(gradients(out, parameters) for out in outs), strict=True):
        assert relative(got, wanted) <= EXACT, name
    return fast


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", CLIPS)
def test_engines(model, kind, position):
    settings, path = CLIPS[model]
    options, depth = KINDS[kind]
    fast = refined_engines(text_clip(**settings), depth, template=TEMPLATES[position], **options)
    assert fast.path is path


@pytest.mark.parametrize("layers", [2, 5])
def test_other_depths(layers):
    clip = frozen(small_model(layers=layers))
    refined_engines(clip, 2)
    refined_engines(clip, 2, class_chunk=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_single_layer_has_none(engine):
    clip = text_clip(layers=1)
    tower = engine(clip, NAMES, 3)
    context = noise(3, 24)
    assert torch.equal(tower(context, None, []), tower(context))
    chunked = TextTower(clip, NAMES, 3, class_chunk=2)
    assert relative(chunked(context, None, nn.ModuleList()), tower(context)) <= EXACT


@pytest.mark.parametrize("model", CLIPS)
def test_without_a_context_token(model):
    clip, context = text_clip(**CLIPS[model][0]), torch.zeros(0, 24, dtype=torch.float64)
    refiners = make_refiners(clip)
    parameters = list(refiners.parameters())
    outs = [engine(clip, NAMES, 0)(context, None, refiners) for engine in ENGINES]
    assert relative(*outs) <= EXACT
    for got, wanted in zip(*(gradients(out, parameters) for out in outs), strict=True):
        assert relative(got, wanted) <= EXACT


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", CLIPS)
def test_refiners_start_as_nothing(model, engine):
    clip = text_clip(**CLIPS[model][0])
    tower = engine(clip, NAMES, 3, template=TEMPLATES["middle"])
    context, deep = prompts_of(tower, 2)
    refiners = make_refiners(clip, perturbed=False)
    refined, plain = tower(context, deep, refiners), tower(context, deep)
    assert relative(refined, plain) <= 1e-12
    for got, wanted in zip(
        gradients(refined, [context, deep]), gradients(plain, [context, deep]), strict=True
    ):
        assert relative(got, wanted) <= 1e-12
    # there is something to learn from
    seconds = [p for name, p in refiners.named_parameters() if "second" in name]
    gradients(tower(context, deep, refiners), seconds)


# ---- which tokens ------------------------------------------------------------------------------


class Added(nn.Module):
    """A constant is added to each token."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(noise(width, seed=seed).detach())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant


def slow_features(
    clip: FrozenCLIP, context: Tensor, deep: Tensor, position: str, refiners: Sequence[nn.Module]
) -> Tensor:
    """One class and one token after the other, each token with a word for what it is."""
    parts, m = clip.text_parts, len(context)
    features = []
    for name in (n.replace("_", " ") for n in NAMES):
        pieces = TEMPLATES[position].replace("{}", name).split("[ctx]")
        halves = [m] if len(pieces) == 2 else [m // 2, m - m // 2]
        tokens, numbers = [49406, *clip.tokenizer.encode(pieces[0])], iter(range(-m, 0))
        for half, piece in zip(halves, pieces[1:], strict=True):  # context tokens: below zero
            tokens += [next(numbers) for _ in range(half)] + clip.tokenizer.encode(piece)
        tokens += [49407] + [0] * (76 - len(tokens))
        assert len(tokens) == 77
        rows = [context[t] if t < 0 else parts.token_embedding.weight[t] for t in tokens]
        x = torch.stack(rows) + parts.positional_embedding
        for i, block in enumerate(parts.transformer.resblocks):
            rows = list(x)
            for place, t in enumerate(tokens):
                if i > 0 and t >= 0:
                    rows[place] = refiners[i - 1](rows[place])
                elif 0 < i <= len(deep):
                    rows[place] = deep[i - 1][t]
            x = block(torch.stack(rows)[None], attn_mask=parts.attn_mask)[0]
        end = tokens.index(max(tokens)) if parts.pool_type == "argmax" else 76
        features.append(parts.ln_final(x)[end])
    projection, out = parts.text_projection, torch.stack(features)
    return projection(out) if isinstance(projection, nn.Module) else out @ projection


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", ["added", "refiner"])
@pytest.mark.parametrize("model", ["causal", "attends-to-padding", "reads-padding"])
def test_context_tokens_are_left_as_they_are_and_others_are_not(model, kind, position):
    clip = text_clip(**CLIPS[model][0])
    refiners = make_refiners(clip)
    if kind == "added":
        refiners = nn.ModuleList(Added(24, seed=20 + i) for i in range(2))
    towers = [engine(clip, NAMES, 3, template=TEMPLATES[position]) for engine in ENGINES]
    # in the first layer and one more; in the last the context flows on
    context, deep = prompts_of(towers[0], 2)
    learnable = [context, deep, *refiners.parameters()]
    with plain_attention():
        wanted = slow_features(clip, context, deep, position, refiners)
    wanted_grads = gradients(wanted, learnable)
    for tower in towers:
        got = tower(context, deep, refiners)
        assert relative(got, wanted) <= EXACT
        for grad, wanted_grad in zip(gradients(got, learnable), wanted_grads, strict=True):
            assert relative(grad, wanted_grad) <= EXACT


class Counted(nn.Module):
    """How many tokens come by."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def forward(self, x: Tensor) -> Tensor:
        self.tokens += x.numel() // x.shape[-1]
        return x


# the tokens of each name, its period and its end token
SUFFIXES = sum((1 + 2, 3 + 2, 8 + 2, 1 + 2, 2 + 2))


@pytest.mark.parametrize(
    ("model", "options", "tokens"),
    [
        ("causal", {}, 1 + SUFFIXES),
        ("causal", {"class_chunk": 2}, 1 + SUFFIXES),
        ("causal", {"template": TEMPLATES["middle"]}, 1 + SUFFIXES),
        ("causal", {"template": TEMPLATES["front"], "class_chunk": 1}, 1 + SUFFIXES),
        ("causal", {"class_specific": True}, 1 + SUFFIXES),
        ("causal", {"n_prompts": 2}, 2 * (1 + SUFFIXES)),
        ("padding-masked", {}, 5 * (1 + 8 + 2)),
        ("attends-to-padding", {"template": TEMPLATES["middle"]}, 5 * (77 - 3)),
    ],
)
def test_no_context_token_is_seen(model, options, tokens):
    clip = text_clip(**CLIPS[model][0])
    tower = TextTower(clip, NAMES, 3, **options)
    refiners = [Counted(), Counted()]
    context, deep = prompts_of(tower, 2)
    with torch.no_grad():
        tower(context, deep, refiners)
    assert [r.tokens for r in refiners] == [tokens, tokens]


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_do_not_share_them(engine):
    clip = text_clip()
    tower, context = engine(clip, NAMES, 3), noise(3, 24)
    first, second = make_refiners(clip)
    assert (
        relative(tower(context, None, [first, second]), tower(context, None, [second, first]))
        > 1e-3
    )


@pytest.mark.parametrize("chunk", [None, 2])
def test_low_precision_takes_the_weights_along(chunk):
    clip = text_clip()
    context, refiners = noise(3, 24), make_refiners(clip)
    wanted = TextTower(clip, NAMES, 3)(context, None, refiners)
    tower = TextTower(clip, NAMES, 3, dtype=torch.bfloat16, class_chunk=chunk)
    plain = relative(tower(context).double(), TextTower(clip, NAMES, 3)(context))
    out = tower(context, None, refiners)
    assert out.dtype == torch.bfloat16
    # the error of the tower itself, and not many times that
    assert relative(out.double(), wanted) <= 4 * plain
    assert {g.dtype for g in gradients(out, refiners.parameters())} == {torch.float64}


# ---- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("model", CLIPS)
def test_chunks_against_the_reference(model, position):
    clip = text_clip(**CLIPS[model][0])
    refined_engines(clip, 3, template=TEMPLATES[position], class_chunk=2, n_prompts=2)
    refined_engines(clip, 2, template=TEMPLATES[position], class_chunk=1, class_specific=True)


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("model", CLIPS)
def test_chunks_change_nothing(model, chunk):
    clip, refiners = text_clip(**CLIPS[model][0]), make_refiners(text_clip())
    results = []
    for size in (chunk, len(NAMES)):
        tower = TextTower(clip, NAMES, 3, class_chunk=size)
        context, deep = prompts_of(tower, 2)
        out = tower(context, deep, refiners)
        results.append([out, *gradients(out, [context, deep, *refiners.parameters()])])
    assert len(tower.chunks) == 1
    for got, wanted in zip(*results, strict=True):
        assert relative(got, wanted) <= 1e-12


def test_a_backward_pass_fills_grad_once():
    clip, context = text_clip(), noise(3, 24)
    refiners = make_refiners(clip)
    tower = TextTower(clip, NAMES, 3, class_chunk=2)
    wanted = gradients(TextTower(clip, NAMES, 3)(context, None, refiners), refiners.parameters())
    out = tower(context, None, refiners)
    (out * noise(*out.shape, seed=99).detach()).sum().backward()
    for p, grad in zip(refiners.parameters(), wanted, strict=True):
        assert relative(p.grad, grad) <= 1e-12


def test_one_module_in_two_places_gets_the_sum():
    clip, context = text_clip(), noise(3, 24)
    first, second = make_refiners(clip)
    second.load_state_dict(first.state_dict())
    learnable = [context, *first.parameters()]
    apart = TextTower(clip, NAMES, 3)(context, None, [first, second])
    wanted = gradients(apart, [*first.parameters(), *second.parameters()])
    for tower in (TextTower(clip, NAMES, 3, class_chunk=c) for c in (2, None)):
        got = gradients(tower(context, None, [first, first]), learnable)[1:]
        for grad, a, b in zip(got, wanted[:4], wanted[4:], strict=True):
            assert relative(grad, a + b) <= 1e-12


def test_what_is_frozen_stays_so_and_the_rest_learns():
    clip, context = text_clip(), noise(3, 24)
    first, second = make_refiners(clip)
    first.requires_grad_(False)
    second.first.weight.requires_grad_(False)
    learnable = [context, *(p for p in second.parameters() if p.requires_grad)]
    assert len(learnable) == 4
    got, wanted = (
        gradients(
            TextTower(clip, NAMES, 3, class_chunk=c)(context, None, [first, second]), learnable
        )
        for c in (2, None)
    )
    for grad, expected in zip(got, wanted, strict=True):
        assert relative(grad, expected) <= 1e-12


@pytest.mark.parametrize("before", [True, False], ids=["frozen-later", "thawed-later"])
def test_freezing_between_forward_and_backward_changes_nothing(before):
    clip, context = text_clip(), noise(3, 24)
    refiners = make_refiners(clip).requires_grad_(before)
    tower = TextTower(clip, NAMES, 3, class_chunk=2)
    (wanted,) = gradients(tower(context, None, refiners), [context])
    out = tower(context, None, refiners)
    refiners.requires_grad_(not before)
    (got,) = gradients(out, [context])
    assert torch.equal(got, wanted)
    assert all(p.grad is None for p in refiners.parameters())


def test_modules_keep_their_parameters():
    clip, context = text_clip(), noise(3, 24)
    refiners = make_refiners(clip)
    before = dict(refiners.named_parameters())
    out = TextTower(clip, NAMES, 3, class_chunk=2)(context, None, refiners)
    gradients(out, [context])
    after = dict(refiners.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


def inputs_of(out: Tensor) -> int:
    return sum(node is not None for node, _ in out.grad_fn.next_functions)


def test_what_is_computed_again_leaves_one_node_and_no_frozen_weight():
    x, refiners = noise(4, 24), make_refiners(text_clip())

    def chain(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
        for module in modules:
            x = module(x)
        return x

    out = recomputed(chain, x, modules=refiners)
    assert {fn.name() for fn, _ in out.grad_fn.next_functions if fn} == {
        "torch::autograd::AccumulateGrad"
    }
    assert inputs_of(out) == 1 + 8
    learnable = [x, *refiners.parameters()]
    for got, wanted in zip(
        gradients(out, learnable), gradients(chain(refiners, x), learnable), strict=True
    ):
        assert torch.equal(got, wanted)
    refiners[0].requires_grad_(False)
    assert inputs_of(recomputed(chain, x, modules=refiners)) == 1 + 4
    refiners.requires_grad_(False)
    assert len(recomputed(chain, x, modules=refiners).grad_fn.next_functions) == 1
    # and with nothing to learn there is no graph
    assert not recomputed(chain, x.detach(), modules=refiners).requires_grad


# ---- compiled ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "chunk"), [("causal", 2), ("padding-masked", None)], ids=["causal-chunks", "masked"]
)
def test_compiled_as_one_graph(model, chunk):
    clip = text_clip(**{"layers": 2, **CLIPS[model][0]})
    tower = TextTower(clip, NAMES, 3, template=TEMPLATES["middle"], class_chunk=chunk)
    context, deep = prompts_of(tower, 2)
    refiners = make_refiners(clip)
    learnable = [context, deep, *refiners.parameters()]

    def features(context: Tensor, deep: Tensor) -> Tensor:
        return tower(context, deep, refiners)

    torch._dynamo.reset()
    compiled = torch.compile(features, backend="aot_eager", fullgraph=True)
    try:
        got, wanted = compiled(context, deep), features(context, deep)
        assert relative(got, wanted) <= EXACT
        for grad, expected in zip(
            gradients(got, learnable), gradients(wanted, learnable), strict=True
        ):
            assert relative(grad, expected) <= EXACT
        refiners.requires_grad_(False)
        (grad,) = gradients(compiled(context, deep), [context])
        assert relative(grad, gradients(features(context, deep), [context])[0]) <= EXACT
    finally:
        torch._dynamo.reset()


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_wrong_number_of_refiners(engine, number):
    clip = text_clip()
    tower = engine(clip, NAMES, 3)
    message = f"^refiners .*2.*{number}"
    context = torch.zeros(3, 24, dtype=torch.float64)
    for refiners in ([nn.Identity()] * number, nn.ModuleList([nn.Identity()] * number)):
        with no_work(clip), pytest.raises(ValueError, match=message):
            tower(context, None, refiners)
        with pytest.raises(ValueError, match=message):
            tower.check(context, None, refiners)
    tower.check(context, None, [nn.Identity()] * 2)
    tower.check(context, None)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_is_no_refiner(engine):
    clip = text_clip()
    tower = engine(clip, NAMES, 3)
    with no_work(clip), pytest.raises(TypeError, match=r"^refiners .*TokenRefiner.*function"):
        tower(torch.zeros(3, 24, dtype=torch.float64), None, [lambda x: x] * 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_hugging_face_towers_take_none(engine):
    pytest.importorskip("transformers")
    from helpers.hf_text import hf_clip

    clip = hf_clip()
    tower = engine(clip, NAMES, 3)
    context = noise(3, 24)
    with no_work(clip), pytest.raises(ValueError, match=r"^refiners .*None.*layers"):
        tower(context, None, [nn.Identity()])
