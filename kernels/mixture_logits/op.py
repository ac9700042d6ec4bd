"""Schemas, implementations, fakes, autograd, and the public functions."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .._check import check_type
from .._dispatch import Impl, define, once_differentiable, resolve, wide_dtype
from . import eager
from .arguments import Mixture, MixtureBackward, Prompts
from .check import check_gram, check_mixture, check_text

Mix = Literal["normalized", "raw"]


class MixtureGram(NamedTuple):
    """What depends on the text features alone: see `mixture_gram`.

    Attributes:
        gram: products of the prompts' features of each class, ``[K, K, C]``, at least float32.
        inv_norm: 1 / length of each feature, ``[K, C]``; ones for ``mix="raw"``.
        mix: which of the two it was made for.
    """

    gram: Tensor
    inv_norm: Tensor
    mix: Mix


def _fake_gram(given: Prompts) -> tuple[Tensor, Tensor]:
    text = given.text
    n_prompts, n_classes, _ = text.shape
    dtype = wide_dtype(text)
    gram = text.new_empty(n_prompts, n_prompts, n_classes, dtype=dtype)
    return gram, text.new_empty(n_prompts, n_classes, dtype=dtype)


def _fake_forward(given: Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def room() -> Tensor:
        return given.gram.new_empty(given.image.shape[0], given.text.shape[1])

    return room(), given.gram.new_empty(given.router.shape), room(), room()


def _fake_backward(given: MixtureBackward) -> tuple[Tensor, ...]:
    inputs = given.image, given.text, given.router, given.scale
    wanted = zip(inputs, given[-4:], strict=True)
    return tuple(like.new_empty(like.shape if wants else 0) for like, wants in wanted)


_gram = define(
    "mixture_gram",
    Prompts,
    "(Tensor, Tensor)",
    eager=eager.mixture_gram,
    launch=".launch:launch_mixture_gram",
    fake=_fake_gram,
)
_forward = define(
    "mixture_logits",
    Mixture,
    "(Tensor, Tensor, Tensor, Tensor)",
    eager=eager.mixture_logits,
    launch=".launch:launch_mixture_logits",
    fake=_fake_forward,
)
_backward = define(
    "mixture_logits_backward",
    MixtureBackward,
    "(Tensor, Tensor, Tensor, Tensor)",
    eager=eager.mixture_logits_backward,
    launch=".launch:launch_mixture_logits_backward",
    fake=_fake_backward,
)


class _MixtureLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Impl, normalized: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
        given = Mixture(*arguments)
        logits, weights, cosine, inverse = _forward(impl, given)
        ctx.save_for_backward(*given[:6], weights, cosine, inverse)
        ctx.impl, ctx.settings = impl, (given.temperature, normalized)
        # without a term on the weights their gradient is None, not a tensor of zeros
        ctx.set_materialize_grads(False)
        return logits, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogits: Tensor | None, dweights: Tensor | None) -> tuple[Any, ...]:
        wants = ctx.needs_input_grad[2:6]
        saved = ctx.saved_tensors  # read once: a checkpoint unpacks them once
        dlogits = torch.zeros_like(saved[7]) if dlogits is None else dlogits
        given = MixtureBackward(dlogits, dweights, *saved, *ctx.settings, *wants)
        found = zip(_backward(ctx.impl, given), wants, strict=True)
        return None, None, *(grad if want else None for grad, want in found), None, None, None


def mixture_gram(
    text_features: Tensor, *, mix: Mix = "normalized", impl: Impl = "auto"
) -> MixtureGram:
    """The part of `mixture_logits` that depends on the text features alone.

    An attack of many steps over fixed text features makes it once and hands it to each of them.
    It is data, not a node of the graph: no gradient goes through it, and `mixture_logits` gives
    the text features their full gradient all the same. It must be made anew when they change.

    Args:
        text_features: ``[K, C, D]``, float64, float32, float16 or bfloat16, K up to 64 and D up to
            1280.
        mix: as for `mixture_logits`, which takes it only with the same.
        impl: ``"triton"`` (a GPU kernel), ``"torch"`` (plain code, any device), or ``"auto"``.

    Returns:
        A `MixtureGram`: ``G_c[k, l] = t^_kc . t^_lc`` as ``[K, K, C]``, and ``1 / |t_kc|`` as
        ``[K, C]``, 0 for a feature of zeros; float32, or float64 for float64.

    Raises:
        TypeError, ValueError, RuntimeError: as `mixture_logits`.
    """
    check_text(text_features, mix)
    text = text_features.detach()
    gram, inv_norm = _gram(resolve(impl, text), Prompts(text, mix == "normalized"))
    return MixtureGram(gram, inv_norm, mix)


@overload
def mixture_logits(
    image_features: Tensor,
    text_features: Tensor,
    router_logits: Tensor,
    logit_scale: Tensor | float,
    *,
    temperature: float = ...,
    mix: Mix = ...,
    gram: MixtureGram | None = ...,
    return_weights: Literal[False] = ...,
    impl: Impl = ...,
) -> Tensor: ...


@overload
def mixture_logits(
    image_features: Tensor,
    text_features: Tensor,
    router_logits: Tensor,
    logit_scale: Tensor | float,
    *,
    temperature: float = ...,
    mix: Mix = ...,
    gram: MixtureGram | None = ...,
    return_weights: Literal[True],
    impl: Impl = ...,
) -> tuple[Tensor, Tensor]: ...


def mixture_logits(
    image_features: Tensor,
    text_features: Tensor,
    router_logits: Tensor,
    logit_scale: Tensor | float,
    *,
    temperature: float = 1.0,
    mix: Mix = "normalized",
    gram: MixtureGram | None = None,
    return_weights: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Logits of images whose class features are a mixture of K prompts' features, each its own.

    With ``w = softmax(router_logits / temperature)`` and ``t^_kc = t_kc / |t_kc|`` (``t_kc`` for
    ``mix="raw"``), the class feature of an image is ``m_bc = sum_k w_bk t^_kc``, and::

        logit_bc = s f_b . m_bc / |m_bc| = s sum_k w_bk (f_b . t^_kc) / sqrt(w_b^T G_c w_b)

    with ``G_c[k, l] = t^_kc . t^_lc``. Exact, without a tensor ``[B, C, D]`` or ``[B, K, C]``:
    adversarial mixture prompt tuning (AMPT), whose mixture this is, spells the first form. A
    feature or a mixture of zeros counts as of length 1/0 = 0: its logit is 0, not NaN. Where
    prompts nearly cancel, ``|m_bc|^2 = q << 1``, rounding grows as ``1/q``, in the first form as
    ``1/sqrt(q)``.

    Args:
        image_features: ``f``, ``[B, D]``, float64, float32, float16 or bfloat16; taken as they
            are: for cosines the caller normalizes them.
        text_features: ``t``, ``[K, C, D]``, dtype of ``image_features``; K up to 64, D up to 1280.
        router_logits: ``[B, K]``, any of these dtypes (float64 only with float64 features).
        logit_scale: ``s``, the factor itself, exp already taken: a number, or a tensor without
            dimensions on the device of the features, floating.
        temperature: of the router's softmax, above 0.
        mix: mix features of length 1, or as they are.
        gram: `mixture_gram` of these text features and this ``mix``, to spare computing it. It
            gets no gradient; ``text_features`` get the full one all the same.
        return_weights: also return ``w``.
        impl: ``"triton"`` (GPU kernels), ``"torch"`` (plain code, any device), or ``"auto"``: the
            kernels on a GPU but for float64, plain code elsewhere.

    Returns:
        Logits ``[B, C]``, at least float32; with ``return_weights`` also the weights ``[B, K]``,
        at least float32. Differentiable, once, in the features, the router's logits and a
        ``logit_scale`` that is a tensor; what needs no gradient costs none.

    Raises:
        TypeError: a dtype other than said above.
        ValueError: shapes or devices that don't fit together, no prompt, class or width, too many
            of them, a temperature not above 0, a ``gram`` made for others.
        RuntimeError: ``impl="triton"`` where it can't run.
    """
    check_text(text_features, mix)
    check_mixture(image_features, text_features, router_logits, logit_scale, temperature)
    resolved = resolve(impl, text_features, image_features, router_logits)
    if gram is None:
        gram = mixture_gram(text_features, mix=mix, impl=impl)
    check_type(gram, "gram", MixtureGram, "a MixtureGram", "make it with mixture_gram")
    dtype = wide_dtype(text_features)
    check_gram(gram.gram, gram.inv_norm, gram.mix, text_features, mix, dtype)
    if isinstance(logit_scale, Tensor):
        scale = logit_scale.to(dtype)
    else:
        scale = torch.full((), float(logit_scale), dtype=dtype, device=text_features.device)
    inputs = image_features, text_features, router_logits, scale
    mixture = Mixture(*inputs, gram.gram, gram.inv_norm, float(temperature))
    logits, weights = _MixtureLogits.apply(resolved, mix == "normalized", *mixture)
    return (logits, weights) if return_weights else logits
