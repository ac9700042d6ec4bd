"""Some classes at once: the same numbers in less memory."""

import copy
import math
from collections.abc import Callable

import open_clip
import pytest
import torch
from helpers.engine_checks import NAMES, TEMPLATES, deep_shape, noise, relative, text_clip
from torch import Tensor

from fastprompt._utils.memory import total_memory
from fastprompt.towers import TextTower
from fastprompt.towers.text_chunks import deal, default_class_chunk, recomputed

CUSTOM = open_clip.CustomTextCLIP
C = len(NAMES)
TOWERS = {
    "causal": ({}, {}),
    "causal-middle": ({}, {"template": TEMPLATES["middle"]}),
    "causal-class-specific": ({}, {"class_specific": True}),
    "causal-several": ({}, {"n_prompts": 2}),
    "causal-last": ({"pool_type": "last"}, {}),
    "padding-masked": ({"layout": CUSTOM, "no_causal_mask": True, "pad_mask": True}, {}),
    "attends-to-padding": (
        {"layout": CUSTOM, "no_causal_mask": True},
        {"class_specific": True, "n_prompts": 2},
    ),
}


def output_and_gradients(tower: TextTower) -> list[Tensor]:
    context = noise(*tower.context_shape)
    deep = noise(*deep_shape(tower, 3), seed=1)
    out = tower(context, deep)
    weight = noise(*out.shape, seed=2).detach()
    return [out, *torch.autograd.grad((out * weight).sum(), [context, deep])]


@pytest.mark.parametrize("chunk", [1, 2, C - 1, C, C + 3])
@pytest.mark.parametrize("setting", TOWERS)
def test_chunks_change_nothing(setting, chunk):
    model, options = TOWERS[setting]
    clip = text_clip(**model)
    tower = TextTower(clip, NAMES, 3, class_chunk=chunk, **options)
    assert tower.class_chunk == min(chunk, C)
    assert len(tower.chunks) == -(-C // chunk)
    whole = output_and_gradients(TextTower(clip, NAMES, 3, class_chunk=C, **options))
    assert min(t.norm() for t in whole) > 1e-6
    for got, wanted in zip(output_and_gradients(tower), whole, strict=True):
        assert relative(got, wanted) <= 1e-12


@pytest.mark.parametrize("chunk", [1, 2, C])
def test_classes_keep_their_order(chunk):
    clip = text_clip()
    context = noise(3, 24).detach()
    tower = TextTower(clip, NAMES, 3, class_chunk=chunk)
    together = tower(context)
    for row, name in zip(together, NAMES, strict=True):
        assert relative(row, TextTower(clip, [name], 3)(context)[0]) <= 1e-12
    order = [4, 2, 0, 3, 1]
    other = TextTower(clip, [NAMES[i] for i in order], 3, class_chunk=chunk)(context)
    assert relative(other, together[order]) <= 1e-12


def test_chunks_without_gradients():
    clip = text_clip()
    context = noise(3, 24)
    with torch.no_grad():
        chunked = TextTower(clip, NAMES, 3, class_chunk=2)(context)
    assert not chunked.requires_grad
    assert relative(chunked, TextTower(clip, NAMES, 3)(context)) <= 1e-12


def kept_bytes(forward: Callable[[], Tensor], weights: list[Tensor]) -> int:
    """Bytes that a graph keeps for its backward pass, each storage once, weights left out."""
    own = {w.untyped_storage().data_ptr() for w in weights}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # the tensor stays alive with it, so that no address is used twice
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    assert out.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("setting", ["causal", "padding-masked"])
def test_a_chunked_graph_keeps_less(setting):
    clip = text_clip(**TOWERS[setting][0])
    names = [f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"]
    weights = [*clip.model.parameters(), *clip.model.buffers()]
    context = noise(3, 24)
    sizes = {}
    for chunk in (64, 16, 1):
        tower = TextTower(clip, names, 3, class_chunk=chunk)
        sizes[chunk] = kept_bytes(lambda t=tower: t(context), weights)
    features = 64 * 24 * 8
    assert sizes[64] > 50 * features  # activations of all classes in all layers
    # what is left belongs to the prefix and the features
    assert sizes[16] < sizes[64] / 5
    assert sizes[1] <= sizes[16]


# ---- the default -------------------------------------------------------------------------------

SHAPES = {"classes": 1000, "tokens": 10, "width": 512, "layers": 12, "dtype": torch.float32}
GIB = 2**30


def test_the_default_is_a_quarter_of_the_memory():
    # 14 tensors of a token's width in each layer
    each = 10 * 512 * 12 * 14 * 4
    chunk = default_class_chunk(**SHAPES, memory=GIB)
    assert chunk * each <= GIB / 4 < (chunk + 1) * each
    assert 1 < chunk < 1000


@pytest.mark.parametrize("argument", ["tokens", "width", "layers"])
def test_larger_towers_take_fewer_classes(argument):
    chunks = [
        default_class_chunk(**SHAPES | {argument: SHAPES[argument] * n}, memory=GIB)
        for n in (1, 2, 4, 8)
    ]
    assert chunks == sorted(set(chunks), reverse=True)


def test_memory_and_precision_count():
    one = default_class_chunk(**SHAPES, memory=GIB)
    assert default_class_chunk(**SHAPES, memory=2 * GIB) in (2 * one, 2 * one + 1)
    half = default_class_chunk(**SHAPES | {"dtype": torch.bfloat16}, memory=GIB)
    assert half in (2 * one, 2 * one + 1)


def test_at_least_one_class_and_at_most_all():
    assert default_class_chunk(**SHAPES, memory=0) == 1
    assert default_class_chunk(**SHAPES | {"tokens": 10**9}, memory=GIB) == 1
    assert default_class_chunk(**SHAPES | {"classes": 7}, memory=GIB) == 7
    assert default_class_chunk(**SHAPES | {"classes": 1}, memory=0) == 1
    # a tower without layers of its own
    assert default_class_chunk(**SHAPES | {"layers": 0}, memory=GIB) == 1000


def test_the_default_has_no_memory_of_its_own():
    first = default_class_chunk(**SHAPES, memory=GIB)
    default_class_chunk(**SHAPES | {"tokens": 77}, memory=GIB)
    assert default_class_chunk(**copy.copy(SHAPES), memory=GIB) == first


def test_a_tower_asks_for_its_own_tokens(monkeypatch):
    asked = []

    def spy(classes, tokens, width, layers, dtype, memory) -> int:
        asked.append((classes, tokens, width, layers, dtype, memory))
        return 2

    monkeypatch.setattr("fastprompt.towers.text.default_class_chunk", spy)
    clip = text_clip()
    tower = TextTower(clip, NAMES, 3)
    assert tower.class_chunk == 2
    assert len(tower.chunks) == 3
    TextTower(clip, NAMES, 3, n_prompts=4)
    TextTower(clip, NAMES, 3, dtype=torch.bfloat16)
    memory = total_memory(torch.device("cpu"))
    # behind the start token: a name, its period and its end; on average, as chunks are dealt
    spoken = [f"{name.replace('_', ' ')}." for name in NAMES]
    used = (clip.tokenizer(spoken) != 0).sum(dim=1) - 1
    mean = math.ceil(float(used.float().mean()))
    assert asked == [
        (C, mean, 24, 3, torch.float64, memory),
        (C, 4 * mean, 24, 3, torch.float64, memory),
        (C, mean, 24, 3, torch.bfloat16, memory),
    ]


def test_small_towers_are_computed_whole():
    tower = TextTower(text_clip(), NAMES, 3)
    assert tower.class_chunk == C
    assert len(tower.chunks) == 1


def test_total_memory_is_the_machines():
    assert total_memory(torch.device("cpu")) == total_memory(torch.device("cpu")) > 2**28


@pytest.mark.parametrize(("classes", "chunk"), [(1, 1), (7, 3), (100, 9), (100, 100), (5, 50)])
def test_rows_are_dealt_evenly(classes, chunk):
    lengths = torch.randint(2, 12, (classes,), generator=torch.Generator().manual_seed(classes))
    hands = deal(lengths, chunk)
    assert sorted(torch.cat(hands).tolist()) == list(range(classes))
    assert max(len(hand) for hand in hands) <= chunk
    # each hand is a fair share: none is longer than another by more than one long row
    totals = [int(lengths[hand].sum()) for hand in hands]
    assert max(totals) - min(totals) <= int(lengths.max())


def test_what_is_computed_again_leaves_one_node():
    weight = noise(6, 6)
    x = noise(4, 6, seed=1)

    def deep(x: Tensor, nothing: None, weight: Tensor) -> Tensor:
        for _ in range(5):
            x = (x @ weight).tanh()
        return x

    out = recomputed(deep, x, None, weight)
    assert {fn.name() for fn, _ in out.grad_fn.next_functions if fn} == {
        "torch::autograd::AccumulateGrad"
    }
    for got, wanted in zip(
        torch.autograd.grad(out.square().sum(), [x, weight]),
        torch.autograd.grad(deep(x, None, weight).square().sum(), [x, weight]),
        strict=True,
    ):
        assert wanted.norm() > 1e-6
        assert torch.equal(got, wanted)


def test_what_needs_no_gradient_gets_none():
    x, fixed = noise(3), noise(3, seed=1).detach()
    out = recomputed(lambda a, b: a * b, x, fixed)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, fixed)
    assert not recomputed(lambda a, b: a * b, fixed, fixed).requires_grad


@pytest.mark.parametrize(("text", "expected"), [("max\n", 8000), ("5000\n", 5000), ("9000", 8000)])
def test_a_containers_limit_counts(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fastprompt._utils.memory.os.sysconf",
        {"SC_PAGE_SIZE": 8, "SC_PHYS_PAGES": 1000}.__getitem__,
    )
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr("fastprompt._utils.memory._CGROUP", limit)
    assert total_memory(torch.device("cpu")) == expected
    limit.unlink()
    assert total_memory(torch.device("cpu")) == 8000
