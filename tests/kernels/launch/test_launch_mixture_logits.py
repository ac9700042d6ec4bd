"""The mixture's kernels against the formula in float64, beside that form in float32."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernel_place import (
    DEVICE,
    DTYPE_IDS,
    DTYPES,
    EPSILON,
    INTERPRETED,
    MARKS,
    strided,
    worst,
)

from fastprompt.kernels import mixture_gram, mixture_logits
from fastprompt.kernels.mixture_logits import launch
from fastprompt.kernels.mixture_logits.reference import mixture_logits as formula

pytestmark = MARKS
NAMES = ("image", "text", "router", "scale")
# images, classes, prompts, width: several tiles, blocks of width, slices of prompts, splits
SHAPES = [(1, 1, 1, 1), (3, 3, 2, 3), (33, 35, 3, 70), (20, 31, 5, 33), (3, 9, 37, 20)]


def batch(n, classes, prompts, width, dtype=torch.float32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(n, width, generator=gen), dim=1)
    # lengths from 0.5 to 2: those of one prompt are no others'
    text = torch.randn(prompts, classes, width, generator=gen)
    text *= 0.5 + 1.5 * torch.rand(prompts, classes, 1, generator=gen)
    router = 2 * torch.randn(n, prompts, generator=gen)
    given = [t.to(dtype) for t in (image, text, router)]
    return [t.to(DEVICE) for t in (*given, torch.tensor(9.0))]


def ours(*inputs, impl="triton", **named):
    return mixture_logits(*inputs, impl=impl, return_weights=True, **named)


def results(function, inputs, *, wanted=range(4), of_weights=True, **named):
    """Logits, weights and gradients by name."""
    inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    logits, weights = function(*inputs, **named)
    gen = torch.Generator().manual_seed(9)
    total = (logits * torch.randn(logits.shape, generator=gen).to(logits)).sum()
    if of_weights:
        total = total + (weights * torch.randn(weights.shape, generator=gen).to(weights)).sum()
    found = torch.autograd.grad(total, [inputs[i] for i in wanted])
    by_name = {NAMES[i]: grad for i, grad in zip(wanted, found, strict=True)}
    return {"logits": logits.detach(), "weights": weights.detach()} | by_name


def shortest(image, text, router, scale, temperature=1.0, mix="normalized"):
    """Length of the shortest mixture, of what it would be if its prompts were alike."""
    weights = (router / temperature).softmax(dim=1)
    text = F.normalize(text, dim=-1) if mix == "normalized" else text
    mixed = torch.einsum("bk,kcd->bcd", weights, text).norm(dim=-1)
    return (mixed / (weights @ text.norm(dim=-1).view(text.shape[:2]))).min()


def check(inputs, *, wanted=range(4), of_weights=True, **named):
    """Within a few times the formula's error in float32, and what storing rounds off.

    Where prompts cancel, that error grows with 1 over the mixture's length, here with its square.
    """
    grads = {"wanted": wanted, "of_weights": of_weights}
    got = results(ours, inputs, **grads, **named)
    exact = results(formula, [t.double() for t in inputs], **grads, **named)
    rounded = results(formula, [t.float() for t in inputs], **grads, **named)
    factor = 4 / shortest(*[t.double() for t in inputs], **named)
    for name, value in exact.items():
        assert got[name].shape == value.shape, name
        limit = factor * max(worst(rounded[name], value), EPSILON[torch.float32])
        if got[name].dtype != torch.float32:
            # the gradients' operands are in TF32 on a GPU, and the store may truncate
            limit += 2 * EPSILON[got[name].dtype]
        # of width 1, or of one prompt: what is 0 in theory has no scale of its own
        scale = 1.0 if value.abs().max() < 1e-12 else value.abs().max()
        error = (got[name].double() - value).abs().max() / scale
        assert error <= limit, f"{name}: {error} above {limit}"
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_gradients(shape, dtype):
    got = check(batch(*shape, dtype=dtype), temperature=0.7)
    assert got["logits"].dtype == got["weights"].dtype == got["scale"].dtype == torch.float32
    assert got["image"].dtype == got["text"].dtype == got["router"].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_raw_mixtures(dtype):
    check(batch(5, 35, 3, 40, dtype=dtype), mix="raw")


def test_more_parts_than_a_block_sums():
    check(batch(130, 1000, 2, 3))


def test_many_prompts_without_a_term_on_the_weights():
    check(batch(3, 4, 64, 24), of_weights=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_big_tiles_in_one_part(monkeypatch, dtype):
    monkeypatch.setattr(launch, "_PROGRAMS", 1)
    check(batch(67, 127, 3, 65, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_wider_than_every_block(dtype):
    check(batch(5, 20, 3, 300, dtype=dtype))


def test_more_tiles_than_are_summed_at_once():
    check(batch(2, 16 * 17, 2, 3), temperature=1.3)


def test_a_scale_with_more_tiles_than_are_summed_at_once():
    inputs = batch(1, 16 * 129, 1, 1)
    gram = mixture_gram(inputs[1], impl="torch")
    named = {"wanted": (3,), "of_weights": False}
    got = results(ours, inputs, gram=gram, **named)["scale"]
    exact = results(formula, [t.double() for t in inputs], **named)["scale"]
    assert worst(got, exact) < 64 * EPSILON[torch.float32]


@pytest.mark.parametrize("wanted", [(0, 2), (0,), (1,), (2,), (3,)])
def test_only_what_is_asked_for(wanted):
    check(batch(7, 20, 3, 9), wanted=wanted, of_weights=2 in wanted)


@pytest.mark.parametrize("mix", ["normalized", "raw"])
def test_a_prepared_gram(mix):
    inputs = batch(5, 20, 3, 40, dtype=torch.float16)
    gram = mixture_gram(inputs[1], mix=mix, impl="triton")
    expected = mixture_gram(inputs[1].double(), mix=mix)
    assert worst(gram.gram, expected.gram) < 8 * EPSILON[torch.float32]
    assert worst(gram.inv_norm, expected.inv_norm) < 8 * EPSILON[torch.float32]
    fresh, prepared = results(ours, inputs, mix=mix), results(ours, inputs, mix=mix, gram=gram)
    assert all(torch.equal(fresh[name], prepared[name]) for name in fresh)


def test_with_gaps_in_memory():
    inputs = batch(5, 20, 3, 9)
    spread = [strided(t) for t in inputs[:3]]
    assert not any(t.is_contiguous() for t in spread)
    expected = results(ours, inputs)
    got = results(ours, [*spread, inputs[3]])
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_gradient_that_is_spread_out_by_expand():
    inputs = [t.requires_grad_() for t in batch(5, 20, 3, 9)]
    got = torch.autograd.grad(ours(*inputs)[0].sum(), inputs)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for grad, value in zip(got, torch.autograd.grad(formula(*exact)[0].sum(), exact), strict=True):
        assert worst(grad, value) < 64 * EPSILON[torch.float32]


def test_empty_batch():
    image, text, router, scale = batch(3, 5, 2, 8)
    got = results(ours, (image[:0], text, router[:0], scale))
    assert got["logits"].shape == (0, 5)
    assert got["weights"].shape == (0, 2)
    assert got["image"].shape == (0, 8)
    assert got["router"].shape == (0, 2)
    assert torch.equal(got["text"], torch.zeros_like(text))
    assert got["scale"] == 0


def test_zeros_and_prompts_that_cancel():
    image, text, router, scale = batch(4, 6, 2, 16)
    text[0, 1] = 0
    text[:, 2] = 0
    text[1, 3] = -text[0, 3]
    router = router * 0
    got = results(ours, (image, text, router, scale))
    assert all(value.isfinite().all() for value in got.values())
    assert got["logits"][:, 2:4].abs().max() == 0
    exact = formula(*[t.double() for t in (image, text, router, scale)])[0]
    assert worst(got["logits"], exact) < 16 * EPSILON[torch.float32]


def test_prompts_that_nearly_cancel():
    """Rounding grows with ``1/q``, that of the formula with ``1/sqrt(q)``."""
    image, text, router, scale = batch(20, 16, 2, 64)
    text[1] = 0.1 * F.normalize(text[1], dim=-1) - F.normalize(text[0], dim=-1)
    inputs = image, text, router * 0, scale
    exact = formula(*[t.double() for t in inputs])[0]
    limit = 4 * worst(formula(*inputs)[0], exact) / 0.05
    assert worst(ours(*inputs)[0], exact) <= limit


def test_one_prompt_is_a_plain_cosine():
    image, text, router, scale = batch(5, 20, 1, 40)
    expected = scale.double() * image.double() @ F.normalize(text[0].double(), dim=-1).T
    assert worst(ours(image, text, router, scale)[0], expected) < 8 * EPSILON[torch.float32]


def test_sharp_routers_choose_one_prompt():
    image, text, router, scale = batch(5, 20, 3, 40)
    for peak in (1e4, 3e38):
        router[:] = torch.tensor([-peak, peak, 0.0], device=DEVICE)
        got = results(ours, (image, text, router, scale), temperature=0.01)
        assert got["weights"].tolist() == [[0.0, 1.0, 0.0]] * 5
        expected = scale.double() * image.double() @ F.normalize(text[1].double(), dim=-1).T
        assert worst(got["logits"], expected) < 8 * EPSILON[torch.float32]
        assert got["router"].abs().max() == 0
        assert all(value.isfinite().all() for value in got.values())


def test_what_is_not_a_number_stays_so():
    image, text, router, scale = batch(4, 6, 2, 16)
    image[1, 3] = float("nan")
    text[0, 2, 0] = float("inf")
    logits, _ = ours(image, text, router, scale)
    assert logits[1].isnan().all()
    assert logits[:, 2].isnan().all()
    assert logits[[0, 2, 3]][:, [0, 1, 3, 4, 5]].isfinite().all()


def test_two_runs_give_the_same_bits():
    inputs = batch(17, 33, 3, 40)
    first, second = results(ours, inputs), results(ours, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operands_in_tf32_are_rounded_not_cut_off(monkeypatch):
    """Each gradient is one product: of a weight that is rounded, and of values that are exact."""
    monkeypatch.setattr(launch, "dot_precision", lambda dtype: "tf32")
    nearest = 2.0**-11 * (1 + 2.0**-9)
    router, scale = torch.zeros(65, 1, device=DEVICE), torch.tensor(9.0, device=DEVICE)
    image = torch.zeros(65, 4, device=DEVICE)
    image[:, :2] = 1
    text = torch.zeros(1, 65, 4, device=DEVICE)
    text[..., 0], text[..., 2] = 1, 2
    named = {"mix": "raw", "of_weights": False}
    # many images and one class, one image and many classes: no sum is longer than its one term
    for name, inputs in {
        "image": (image, text[:, :1], router, scale),
        "text": (image[:1], text, router[:1], scale),
    }.items():
        wanted = (NAMES.index(name),)
        got = results(ours, inputs, wanted=wanted, **named)[name].double()
        exact = results(formula, [t.double() for t in inputs], wanted=wanted, **named)[name]
        columns = [0, 2] if name == "image" else [1, 2]
        error = (got[..., columns] / exact[..., columns] - 1).abs().max()
        assert error <= nearest, name


if not INTERPRETED:

    def test_runs_in_a_graph():
        inputs = [t.requires_grad_() for t in batch(63, 127, 3, 64)]

        def step():
            logits, weights = ours(*inputs, temperature=0.7)
            total = logits.square().sum() + weights.square().sum()
            return [logits.detach(), *torch.autograd.grad(total, inputs)]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for seed in (1, 2):
            with torch.no_grad():
                for tensor, new in zip(inputs, batch(63, 127, 3, 64, seed=seed), strict=True):
                    tensor.copy_(new)
            graph.replay()
            expected = step()
            assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
