"""The mixture's logits against their formula, its gradients, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from fastprompt.kernels import MixtureGram, mixture_gram, mixture_logits
from fastprompt.kernels.mixture_logits.reference import mixture_logits as formula

NAMES = ("image_features", "text_features", "router_logits", "logit_scale")


def batch(n=5, classes=7, prompts=3, width=11, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    image = torch.randn(n, width, generator=gen, dtype=dtype)
    text = torch.randn(prompts, classes, width, generator=gen, dtype=dtype)
    router = torch.randn(n, prompts, generator=gen, dtype=dtype)
    return F.normalize(image, dim=1), text, router, torch.tensor(7.0, dtype=dtype)


def gradients(function, inputs, *, of_weights=True, wanted=range(4), **named):
    """Logits, weights and the gradients of a sum over both, by name."""
    inputs = [t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    logits, weights = function(*inputs, **named)
    gen = torch.Generator().manual_seed(9)
    total = (logits * torch.randn(logits.shape, generator=gen).to(logits)).sum()
    if of_weights:
        total = total + (weights * torch.randn(weights.shape, generator=gen).to(weights)).sum()
    found = torch.autograd.grad(total, [inputs[i] for i in wanted])
    named = {NAMES[i]: grad for i, grad in zip(wanted, found, strict=True)}
    return {"logits": logits.detach(), "weights": weights.detach()} | named


def ours(*inputs, **named):
    return mixture_logits(*inputs, return_weights=True, **named)


def assert_same(got, expected, limit):
    assert got.keys() == expected.keys()
    for name, exact in expected.items():
        assert got[name].shape == exact.shape, name
        error = (got[name].double() - exact.double()).norm()
        assert error <= limit * exact.double().norm(), f"{name}: {error / exact.double().norm()}"


@pytest.mark.parametrize("mix", ["normalized", "raw"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_the_formula(mix, temperature):
    inputs = batch()
    got, weights = ours(*inputs, temperature=temperature, mix=mix)
    expected, expected_weights = formula(*inputs, temperature, mix)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13 * 7)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-15)


@pytest.mark.parametrize("of_weights", [True, False])
@pytest.mark.parametrize("mix", ["normalized", "raw"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 7, 3, 11), (9, 33, 8, 64), (4, 6, 64, 20)])
def test_gradients_equal_those_of_the_formula(shape, mix, of_weights):
    named = {"mix": mix, "temperature": 0.7, "of_weights": of_weights}
    inputs = batch(*shape)
    got = gradients(ours, inputs, **named)
    expected = gradients(formula, inputs, **named)
    if shape[-1] == 1:  # of width 1 a cosine is a sign: without a gradient in the text
        assert got.pop("text_features").abs().max() < 1e-13
        expected.pop("text_features")
    assert_same(got, expected, 1e-12)


def test_more_classes_than_one_chunk():
    inputs = batch(2, 12, 64, 1024)  # 8 classes a chunk
    assert_same(gradients(ours, inputs), gradients(formula, inputs), 1e-12)


@pytest.mark.parametrize("mix", ["normalized", "raw"])
def test_gradcheck(mix):
    inputs = [t.requires_grad_() for t in batch(3, 4, 3, 5)]
    assert torch.autograd.gradcheck(lambda *t: ours(*t, mix=mix, temperature=0.8), inputs)


@pytest.mark.parametrize("wanted", [(0, 2), (0,), (1,), (2,), (3,), (1, 3)])
def test_only_what_is_asked_for(wanted):
    inputs = batch()
    got = gradients(ours, inputs, wanted=wanted, of_weights=False)
    assert_same(got, gradients(formula, inputs, wanted=wanted, of_weights=False), 1e-12)


def test_an_attack_does_no_work_for_the_text(monkeypatch):
    from fastprompt.kernels.mixture_logits import eager

    def refuse(*_):
        raise AssertionError("the text gradient was computed")

    monkeypatch.setattr(eager, "_text_gradient", refuse)
    gradients(ours, batch(), wanted=(0, 2))
    with pytest.raises(AssertionError, match="text gradient"):
        gradients(ours, batch(), wanted=(1,))


def test_weights_alone_have_a_gradient():
    image, text, router, scale = batch()
    router.requires_grad_()
    _, weights = ours(image, text, router, scale, temperature=0.5)
    (got,) = torch.autograd.grad(weights.square().sum(), router)
    expected = torch.autograd.grad((router / 0.5).softmax(1).square().sum(), router)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mix", ["normalized", "raw"])
def test_a_prepared_gram_changes_nothing(mix):
    inputs = batch()
    gram = mixture_gram(inputs[1].requires_grad_(), mix=mix)
    assert not gram.gram.requires_grad
    prepared = gradients(ours, inputs, mix=mix, gram=gram)
    fresh = gradients(ours, inputs, mix=mix)
    assert all(torch.equal(prepared[name], fresh[name]) for name in fresh)
    torch.testing.assert_close(
        gram.gram,
        torch.einsum(
            "kcd,lcd->klc",
            *[F.normalize(inputs[1], dim=-1) if mix == "normalized" else inputs[1]] * 2,
        ),
        rtol=0,
        atol=1e-13,
    )


# what a mixture comes to


@pytest.mark.parametrize("prompts", [1, 4])
def test_one_prompt_and_alike_prompts_are_plain_cosines(prompts):
    image, text, _, scale = batch(prompts=1)
    text = text.expand(prompts, -1, -1)
    router = batch(prompts=prompts)[2]
    expected = scale * image @ F.normalize(text[0], dim=-1).T
    got = mixture_logits(image, text, router, scale)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_prompts_that_cancel_count_as_no_feature():
    image, text, router, scale = batch(prompts=2)
    inputs = image, torch.stack([text[0], -text[0]]), router * 0, scale
    found = gradients(ours, inputs)
    assert torch.equal(found["logits"], torch.zeros_like(found["logits"]))
    assert all(grad.isfinite().all() for grad in found.values())


def test_a_feature_of_zeros_counts_as_none():
    image, text, router, scale = batch()
    text[1] = 0
    text[:, 2] = 0
    found = gradients(ours, (image, text, router, scale))
    assert all(value.isfinite().all() for value in found.values())
    assert found["logits"][:, 2].abs().max() == 0
    torch.testing.assert_close(found["logits"], formula(image, text, router, scale)[0])


@pytest.mark.parametrize("gap", [1e-1, 1e-2])
def test_prompts_that_nearly_cancel(gap):
    """Rounding grows with ``1/q``, that of the plain form with ``1/sqrt(q)``, q = (gap / 2)^2."""
    image, text, router, scale = batch(40, 30, 2, 64)
    noise = torch.randn(30, 64, generator=torch.Generator().manual_seed(3), dtype=text.dtype)
    opposite = -F.normalize(text[0], dim=-1) + gap * F.normalize(noise, dim=-1)
    exact = image, torch.stack([text[0], opposite]), router * 0, scale
    rounded = [t.float() for t in exact]
    exact = [t.double() for t in rounded]
    truth = formula(*exact)[0]
    plain = (formula(*rounded)[0] - truth).abs().max()
    # 4: an entry of G is rounded three times more than one of t^: product and two lengths
    assert (mixture_logits(*rounded) - truth).abs().max() <= 4 * plain / (gap / 2)
    torch.testing.assert_close(mixture_logits(*exact), truth, rtol=0, atol=1e-9)


def test_sharp_routers_choose_one_prompt():
    image, text, _, scale = batch(dtype=torch.float32)
    router = torch.tensor([1e4, -1e4, 0.0]).roll(1).expand(5, 3)
    got = mixture_logits(image, text, router, scale, temperature=0.01)
    expected = scale * image @ F.normalize(text[1], dim=-1).T
    torch.testing.assert_close(got, expected)
    # the largest is taken off first: nothing overflows
    huge = torch.tensor([3e38, 0.0, -3e38]).expand(5, 3)
    _, weights = ours(image, text, huge, scale, temperature=0.01)
    assert weights.tolist() == [[1.0, 0.0, 0.0]] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    """No worse than the plain form in float32 on the same values, plus the rounding of the grad."""
    low = [t.to(dtype) for t in batch(20, 30, 4, 64)]
    exact = gradients(formula, [t.double() for t in low])
    plain = gradients(formula, [t.float() for t in low])
    got = gradients(ours, low)
    assert got["logits"].dtype == got["weights"].dtype == torch.float32
    for name, value in exact.items():
        stored = got[name].dtype
        assert stored == (dtype if name in NAMES else torch.float32)
        error = (got[name].double() - value).abs().max()
        limit = 4 * (plain[name].double() - value).abs().max()
        assert error <= limit + torch.finfo(stored).eps * value.abs().max(), name


def test_routers_of_another_dtype():
    image, text, router, scale = (t.bfloat16() for t in batch())
    got = gradients(ours, (image, text, router.float(), scale.float()))
    assert got["router_logits"].dtype == torch.float32
    expected = gradients(ours, (image, text, router, scale))
    torch.testing.assert_close(got["logits"], expected["logits"])
    assert expected["router_logits"].dtype == expected["logit_scale"].dtype == torch.bfloat16


def test_numbers_empty_batches_and_strides():
    image, text, router, scale = batch()
    expected = mixture_logits(image, text, router, scale)
    assert torch.equal(mixture_logits(image, text, router, 7.0), expected)
    spread = [torch.stack([t, t * 0], dim=-1)[..., 0] for t in (image, text, router)]
    assert not spread[1].is_contiguous()
    torch.testing.assert_close(mixture_logits(*spread, scale), expected, rtol=0, atol=1e-14)
    empty = gradients(ours, (image[:0], text, router[:0], scale))
    assert empty["logits"].shape == (0, 7)
    assert empty["weights"].shape == (0, 3)
    assert torch.equal(empty["text_features"], torch.zeros_like(text))
    assert empty["logit_scale"] == 0


def test_torch_is_what_runs_on_the_cpu():
    inputs = batch()
    got, expected = gradients(ours, inputs, impl="torch"), gradients(ours, inputs)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


# registration


def operands(dtype=torch.float64):
    image, text, router, scale = batch(dtype=dtype)
    gram = mixture_gram(text)
    return image, text, router, scale, gram.gram, gram.inv_norm


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("normalized", [True, False])
def test_opcheck_gram(normalized):
    op = torch.ops.fastprompt.mixture_gram.default
    torch.library.opcheck(op, (operands()[1], normalized), test_utils=CHECKS)


@pytest.mark.parametrize("wants", [(True,) * 4, (True, False, True, False), (False,) * 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck_forward_and_backward(wants, dtype):
    inputs = operands(dtype)
    inputs = (*inputs[:3], inputs[3].to(inputs[4].dtype), *inputs[4:])
    op = torch.ops.fastprompt.mixture_logits.default
    torch.library.opcheck(op, (*inputs, 0.5), test_utils=CHECKS)
    logits, *saved = op(*inputs, 0.5)
    arguments = (logits, saved[0] if wants[0] else None, *inputs, *saved, 0.5, True, *wants)
    back = torch.ops.fastprompt.mixture_logits_backward.default
    torch.library.opcheck(back, arguments, test_utils=CHECKS)


def test_compiles_whole_for_all_sizes():
    def step(*inputs):
        logits, weights = ours(*inputs, temperature=0.9)
        return logits.square().sum() + weights.square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for shape in ((5, 7, 3, 11), (6, 9, 4, 12)):
        inputs = [t.requires_grad_() for t in batch(*shape)]
        expected = torch.autograd.grad(step(*inputs), inputs)
        for got, grad in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
            torch.testing.assert_close(got, grad, rtol=1e-12, atol=1e-12)


def test_compiles_with_a_prepared_gram_and_a_number():
    def step(image, text, router, gram):
        return mixture_logits(image, text, router, 7.0, gram=gram)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for shape in ((5, 7, 3, 11), (6, 9, 4, 12)):
        image, text, router, _ = batch(*shape)
        gram = mixture_gram(text)
        got = compiled(image.requires_grad_(), text, router, gram)
        torch.testing.assert_close(got, step(image, text, router, gram))
        assert torch.autograd.grad(got.sum(), image)[0].shape == image.shape


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_tensors_without_memory(impl):
    inputs = [t.to("meta", torch.bfloat16) for t in batch()]
    found = gradients(lambda *t, **named: ours(*t, impl=impl, **named), [*inputs[:3], inputs[3]])
    assert found["logits"].shape == (5, 7)
    assert found["logits"].dtype == torch.float32
    assert found["text_features"].shape == (3, 7, 11)
    assert found["text_features"].dtype == torch.bfloat16
    assert all(value.is_meta for value in found.values())


# what it refuses


def refused(error, match, **changes):
    named = dict(zip(NAMES, batch(dtype=torch.float32), strict=True)) | changes
    with pytest.raises(error, match=match):
        mixture_logits(**named)


def test_wrong_shapes():
    image, text, router, _ = batch(dtype=torch.float32)
    refused(ValueError, r"^text_features .*\[K, C, D\].*\[7, 11\]", text_features=text[0])
    refused(ValueError, r"^text_features .*\[0, 7, 11\]", text_features=text[:0])
    refused(ValueError, r"^text_features .*\[3, 0, 11\]", text_features=text[:, :0])
    refused(ValueError, "^text_features .*64.*65", text_features=torch.ones(65, 2, 11))
    refused(ValueError, "^text_features .*1280.*1281", text_features=torch.ones(3, 2, 1281))
    refused(ValueError, r"^image_features .*\[B, 11\].*\[5, 10\]", image_features=image[:, 1:])
    refused(ValueError, r"^image_features .*\[B, 11\].*\[11\]", image_features=image[0])
    refused(ValueError, r"^router_logits .*\[5, 3\].*\[4, 3\]", router_logits=router[1:])
    refused(ValueError, r"^router_logits .*\[5, 3\].*\[5\]", router_logits=router[:, 0])
    refused(ValueError, r"^logit_scale .*\[1\]", logit_scale=torch.ones(1))


def test_wrong_dtypes():
    image, text, router, scale = batch(dtype=torch.float32)
    refused(TypeError, "^text_features .*float32.*int32", text_features=text.int())
    refused(TypeError, "^image_features .*text_features.*dtype", image_features=image.half())
    refused(TypeError, "^router_logits .*float32.*int64", router_logits=router.long())
    refused(TypeError, "^router_logits .*float64.*float32", router_logits=router.double())
    refused(TypeError, "^logit_scale .*float32.*int32", logit_scale=scale.int())


def test_two_devices():
    for name, tensor in zip(NAMES, batch(dtype=torch.float32), strict=True):
        first = "image_features" if name == "text_features" else name
        refused(ValueError, f"^{first} .*text_features.*meta", **{name: tensor.to("meta")})


def test_wrong_settings():
    refused(ValueError, "^temperature .*0.*0.0", temperature=0.0)
    refused(ValueError, "^temperature .*nan", temperature=float("nan"))
    refused(ValueError, "^temperature .* inf", temperature=float("inf"))
    learns = torch.ones((), requires_grad=True)
    refused(TypeError, "^temperature .*tensor.*router_logits", temperature=learns)
    refused(ValueError, "^logit_scale .* inf", logit_scale=float("inf"))
    refused(ValueError, "^logit_scale .* nan", logit_scale=float("nan"))
    refused(ValueError, "^mix .*'raw'.*'mean'", mix="mean")
    refused(RuntimeError, "^impl.*'triton'.*cpu", impl="triton")
    refused(ValueError, "^impl .*'cuda'", impl="cuda")


def test_wrong_gram():
    text = batch(dtype=torch.float32)[1]
    gram = mixture_gram(text)
    refused(ValueError, "^gram .*mix='normalized'.*mix='raw'", gram=gram, mix="raw")
    refused(ValueError, r"^gram.gram .*\[3, 3, 7\]", gram=mixture_gram(text[:, :6]))
    refused(ValueError, "^gram.gram .*float32.*float64", gram=mixture_gram(text.double()))
    short = MixtureGram(gram.gram, gram.inv_norm[:2], "normalized")
    refused(ValueError, r"^gram.inv_norm .*\[3, 7\]", gram=short)
    away = MixtureGram(gram.gram.to("meta"), gram.inv_norm, "normalized")
    refused(ValueError, "^gram.gram .*text_features.*meta", gram=away)
    refused(TypeError, "^gram .*MixtureGram.*Tensor", gram=gram.gram)
    refused(TypeError, "^gram .*MixtureGram.*tuple", gram=tuple(gram))
    nothing = MixtureGram(gram.gram, None, "normalized")
    refused(TypeError, "^gram.inv_norm .*tensor.*NoneType", gram=nothing)
    with pytest.raises(ValueError, match=r"^mix .*'mean'"):
        mixture_gram(text, mix="mean")


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("value", [None, [[0.1]]])
def test_tensors_are_wanted(name, value):
    refused(TypeError, f"^{name} .*tensor.*{type(value).__name__}", **{name: value})
    if name == "text_features":
        with pytest.raises(TypeError, match=r"^text_features .*tensor"):
            mixture_gram(value)


@pytest.mark.parametrize("name", ["logit_scale", "temperature"])
def test_numbers_are_wanted(name):
    refused(TypeError, f"^{name} .*number.*NoneType", **{name: None})
    refused(TypeError, f"^{name} .*number.*'100'", **{name: "100"})
