"""What depends on no image, or on no prompt, is computed once, and gives the same features."""

import copy
import threading

import pytest
import torch
from helpers.engine_checks import NAMES, SINGLE, TEMPLATES, noise, relative
from helpers.models import small_model
from torch import Tensor, nn

from fastprompt import load_clip
from fastprompt.prompts.refiners import TokenRefiner
from fastprompt.towers import ImageTower, ReferenceTextTower, TextTower
from fastprompt.towers.blocks import OpenBlock
from fastprompt.towers.image_prompts import refiner_weights

EXACT = 1e-10
LAYERS = 3
# prompts in all layers, in some, and where they pass through the last ones
DEPTHS = {"all": (0, 1, 2), "some": (0, 1), "late": (1,), "none": ()}


@pytest.fixture(scope="module")
def clip():
    model = small_model(layers=LAYERS)
    model.visual.transformer.resblocks.append(copy.deepcopy(model.visual.transformer.resblocks[0]))
    return load_clip(model.double())


def refiners_of(clip, dtype=torch.float64) -> nn.ModuleList:
    width = clip.model.visual.conv1.out_channels
    return nn.ModuleList(TokenRefiner(width, start="linear", seed=i) for i in range(LAYERS - 1)).to(
        dtype
    )


def pixels() -> Tensor:
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture
def keyed(monkeypatch):
    """Tokens whose keys and values were computed without queries, by their shape."""
    seen: list[tuple[int, ...]] = []
    real = OpenBlock.keys_values

    def spy(self, normed):
        seen.append(tuple(normed.shape))
        return real(self, normed)

    monkeypatch.setattr(OpenBlock, "keys_values", spy)
    return seen


# ---- the image tower ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True], ids=["features", "layers"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_shared_prompts_give_the_same_features_and_gradients(clip, depth, keep):
    tower = ImageTower(clip, DEPTHS[depth])
    width = clip.model.visual.conv1.out_channels
    prompts = noise(len(tower.layers), 2, width, seed=1) if tower.layers else None
    refiners = refiners_of(clip, torch.float32)  # cast in each call, or once
    learning = [*refiners.parameters(), *([] if prompts is None else [prompts])]
    results = []
    for shared in (True, False):
        given = tower.share(prompts, refiners) if shared else prompts
        out = tower(pixels(), given, refiners, keep_layers=keep)
        parts = [out[0], *out[1]] if keep else [out]
        loss = sum((p * noise(*p.shape, seed=9)).sum() for p in parts)
        results.append((*parts, *torch.autograd.grad(loss, learning)))
    for a, b in zip(*results, strict=True):
        assert b.norm() > 1e-6
        assert relative(a, b) <= EXACT


def test_keys_of_prompts_are_computed_once_for_all_calls(clip, keyed):
    tower = ImageTower(clip, DEPTHS["all"])
    width = clip.model.visual.conv1.out_channels
    shared = tower.share(noise(3, 2, width, seed=1)).detached()
    assert keyed == [(2, width)] * 3
    keyed.clear()
    for _ in range(2):
        tower(pixels(), shared)
    assert keyed == [(2, 10, width)] * 2  # the images' own, in the last block


def test_prompts_that_pass_through_have_no_keys_of_their_own(clip):
    tower = ImageTower(clip, DEPTHS["some"])
    shared = tower.share(noise(2, 2, clip.model.visual.conv1.out_channels, seed=1))
    assert [len(pair) for pair in shared.keys] == [2, 0]


def test_the_weights_of_refiners_are_taken_and_cast_if_necessary(clip):
    own, low = refiners_of(clip), refiners_of(clip, torch.float32)
    ((weight, *_), *_) = refiner_weights(own, torch.float64)
    assert weight is own[0].first.weight
    assert refiner_weights(None, torch.float64) == ()
    assert refiner_weights(nn.ModuleList([low[0], nn.Identity()]), torch.float64) == ()
    cast = refiner_weights(low, torch.float64)
    assert [w.dtype for weights in cast for w in weights] == [torch.float64] * 8
    assert all(w.requires_grad for weights in cast for w in weights)


def test_a_module_of_another_kind_is_called_as_it_is(clip):
    class Doubling(nn.Module):
        def forward(self, x):
            return 2 * x

    tower, refiners = ImageTower(clip), nn.ModuleList([Doubling()])
    x = pixels()
    assert torch.equal(tower(x, tower.share(None, refiners), refiners), tower(x, None, refiners))
    assert relative(tower(x, None, refiners), tower(x)) > 1e-3


@pytest.mark.parametrize("change", ["subclass", "forward", "hook", "pre-hook"])
def test_a_changed_refiner_is_called_as_it_is(clip, change):
    class Doubling(TokenRefiner):
        def forward(self, x):
            return super().forward(2 * x)

    width = clip.model.visual.conv1.out_channels
    plain = TokenRefiner(width, start="linear")  # float32: is cast
    refiner = Doubling(width, start="linear") if change == "subclass" else copy.deepcopy(plain)
    if change == "forward":
        refiner.forward = lambda x: plain(2 * x)
    elif change == "hook":
        refiner.register_forward_hook(lambda module, args, out: 2 * out)
    elif change == "pre-hook":
        refiner.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    tower, x, refiners = ImageTower(clip), pixels(), nn.ModuleList([refiner])
    shared = tower.share(None, refiners)
    assert torch.equal(tower(x, shared, refiners), tower(x, None, refiners))
    assert relative(tower(x, shared, refiners), tower(x, None, nn.ModuleList([plain]))) > 1e-3


# ---- the text tower -------------------------------------------------------------------------


def text_tower(clip, **options) -> TextTower:
    tower = TextTower(clip, NAMES, 3, **options)
    assert tower.lead is not None
    return tower


def calls_of(tower: TextTower) -> list[str]:
    calls: list[str] = []
    for name in ("lead", "rest", "shared"):
        part = getattr(tower, name)
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("depth", [1, LAYERS])
def test_the_first_tokens_are_computed_once_for_the_weights(clip, depth):
    tower = text_tower(clip)
    calls, width = calls_of(tower), clip.text_parts.width
    deep = noise(depth - 1, 3, width, seed=2) if depth > 1 else None
    for seed in (1, 2):
        tower(noise(3, width, seed=seed), deep)
    # with prompts in one layer only, the other tokens take as many operations without the first
    assert calls == ["rest" if depth > 1 else "shared"] * 2
    assert [tuple(t.shape[:2]) for t in tower.start] == [(1, 1)] * (2 * LAYERS)
    assert not any(t.requires_grad for t in tower.start)
    refiners = nn.ModuleList(TokenRefiner(width) for _ in range(LAYERS - 1)).double()
    tower(noise(3, width, seed=1), deep, refiners)
    assert calls[2:] == ["shared"]  # these change the first tokens


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_with_deep_prompts_only_what_follows_the_start_is_computed(clip, template, monkeypatch):
    """The features are those of the reference tower, also where fixed words follow the context."""
    fast = text_tower(clip, template=template)
    plain = ReferenceTextTower(clip, NAMES, 3, template=template)
    width = clip.text_parts.width
    context, deep = noise(3, width, seed=1), noise(LAYERS - 1, 3, width, seed=2)
    computed: list[int] = []
    real = OpenBlock.norm

    def spy(self, x):
        computed.append(x.shape[1])
        return real(self, x)

    got = fast(context, deep)
    grads = torch.autograd.grad((got * got).sum(), [context, deep])
    wanted = plain(context, deep)
    expected = torch.autograd.grad((wanted * wanted).sum(), [context, deep])
    for a, b in zip((got, *grads), (wanted, *expected), strict=True):
        assert relative(a, b) <= EXACT
    monkeypatch.setattr(OpenBlock, "norm", spy)
    fast.rest(context[None], deep[None], None, *fast.start)
    assert sum(computed) <= (fast.prefix - fast.lead.length) * LAYERS


def test_the_first_tokens_follow_the_weights(clip):
    model = load_clip(small_model(layers=LAYERS).double())
    tower = text_tower(model)
    width = model.text_parts.width
    context, deep = noise(3, width, seed=1), noise(1, 3, width, seed=2)
    before = tower(context, deep).detach()
    model.load_state_dict(load_clip(small_model(seed=7, layers=LAYERS).double()).state_dict())
    after = tower(context, deep)
    assert relative(after, ReferenceTextTower(model, NAMES, 3)(context, deep)) <= EXACT
    assert relative(after, before) > 1e-2
    model.float()
    assert tower(context.float(), deep.float()).dtype == tower.start[0].dtype == torch.float32


def test_first_computed_without_gradients_they_serve_steps_with_gradients():
    clip = load_clip(small_model(layers=LAYERS).double())
    tower, width = text_tower(clip), clip.text_parts.width
    context, deep = noise(3, width, seed=1), noise(1, 3, width, seed=2)
    clip.load_state_dict(load_clip(small_model(seed=7, layers=LAYERS).double()).state_dict())
    with torch.inference_mode():
        wanted = tower(context, deep).clone()
    got = tower(context, deep)
    assert relative(got, wanted) <= EXACT
    (grad,) = torch.autograd.grad(got.square().sum(), context)
    assert grad.norm() > 1e-6


@pytest.mark.parametrize("template", ["[ctx] {}.", "{} [ctx]."], ids=["inside", "outside"])
@pytest.mark.parametrize("where", ["made", "used", "both"])
def test_under_autocast_the_first_tokens_have_the_dtype_of_the_others(where, template):
    clip = load_clip(small_model(layers=LAYERS))
    width, options = clip.text_parts.width, {"n_ctx": 3, "template": template}
    context, deep = (noise(*n, 3, width, seed=1, dtype=torch.float32) for n in ((), (2,)))
    wanted = ReferenceTextTower(clip, NAMES, **options)(context, deep)
    with torch.autocast("cpu", torch.bfloat16, enabled=where != "used"):
        tower = TextTower(clip, NAMES, **options)
    with torch.autocast("cpu", torch.bfloat16, enabled=where != "made"):
        got = tower(context, deep)
    assert relative(got.float(), wanted) <= (SINGLE if where == "made" else 0.05)
    (grad,) = torch.autograd.grad(got.float().square().sum(), context)
    assert grad.norm() > 1e-6
    assert relative(tower(context, deep), wanted) <= SINGLE


def test_after_an_error_the_first_tokens_are_computed_again():
    clip = load_clip(small_model(layers=LAYERS).double())
    tower, width = text_tower(clip), clip.text_parts.width
    context, deep = noise(3, width, seed=1), noise(1, 3, width, seed=2)
    clip.load_state_dict(load_clip(small_model(seed=7, layers=LAYERS).double()).state_dict())

    def fail(*_):
        raise torch.OutOfMemoryError("once")

    hook = tower.lead.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="once"):
        tower(context, deep)
    hook.remove()
    wanted = ReferenceTextTower(clip, NAMES, 3)(context, deep)
    assert relative(tower(context, deep), wanted) <= EXACT


def test_a_thread_waits_for_no_other_to_follow_the_weights():
    clip = load_clip(small_model().double())
    tower = ImageTower(clip)
    clip.load_state_dict(load_clip(small_model(seed=7).double()).state_dict())
    started, go, derive = threading.Event(), threading.Event(), tower.derive

    def slow():
        started.set()
        assert go.wait(10)
        derive()

    tower.derive = slow
    other = threading.Thread(target=tower.refresh)
    other.start()
    assert started.wait(10)
    tower.derive = derive
    found = tower(pixels())
    go.set()
    other.join()
    assert relative(found, clip.encode_image(pixels())) <= EXACT
