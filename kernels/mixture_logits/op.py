"""Op registration, autograd function and public functions of the mixture."""

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
    """Values that depend only on the text features: see `mixture_gram`.

    Attributes:
        gram: Gram matrix of the prompts' features of each class, ``[K, K, C]``, at least float32.
        inv_norm: inverse norm of each feature, 0 for a feature of zeros, ``[K, C]``; all ones for
            ``mix="raw"``.
        mix: the ``mix`` that it was computed for.
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
        # if the weights are unused, their gradient is None instead of a tensor of zeros
        ctx.set_materialize_grads(False)
        return logits, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogits: Tensor | None, dweights: Tensor | None) -> tuple[Any, ...]:
        wants = ctx.needs_input_grad[2:6]
        saved = ctx.saved_tensors  # read once: activation checkpointing unpacks them only once
        dlogits = torch.zeros_like(saved[7]) if dlogits is None else dlogits
        given = MixtureBackward(dlogits, dweights, *saved, *ctx.settings, *wants)
        found = zip(_backward(ctx.impl, given), wants, strict=True)
        return None, None, *(grad if want else None for grad, want in found), None, None, None


def mixture_gram(
    text_features: Tensor, *, mix: Mix = "normalized", impl: Impl = "auto"
) -> MixtureGram:
    """Compute the part of `mixture_logits` that depends only on the text features.

    A multi-step attack with fixed text features computes it once and passes it to each step. The
    result is not part of the autograd graph: no gradient flows through it, and `mixture_logits`
    still gives the text features their full gradient. Recompute it when the text features change.

    Args:
        text_features: ``[K, C, D]``, float64, float32, float16 or bfloat16, K up to 64 and D up to
            1280.
        mix: as for `mixture_logits`, which must get the same value.
        impl: as for `mixture_logits`.

    Returns:
        A `MixtureGram`: ``G_c[k, l] = t^_kc . t^_lc`` as ``[K, K, C]``, and ``1 / |t_kc|`` as
        ``[K, C]``, 0 for a feature of zeros; float32, or float64 for float64. For ``mix="raw"``,
        ``t^_kc = t_kc`` and the second tensor is all ones.

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
    """Return logits where each image has its own mixture of the K prompts.

    With ``w = softmax(router_logits / temperature)`` and ``t^_kc = t_kc / |t_kc|`` (``t_kc`` for
    ``mix="raw"``), the class feature of an image is ``m_bc = sum_k w_bk t^_kc``, and::

        logit_bc = s f_b . m_bc / |m_bc| = s sum_k w_bk (f_b . t^_kc) / sqrt(w_b^T G_c w_b)

    with ``G_c[k, l] = t^_kc . t^_lc``. The mixture is that of adversarial mixture prompt tuning
    (AMPT), which uses the first form. The second form, used here, is exact and needs no tensor
    ``[B, C, D]`` or ``[B, K, C]``. The inverse norm of a zero feature or mixture is defined as 0:
    the logit of a zero mixture is 0, not NaN. If prompts nearly cancel, ``q = |m_bc|^2 << 1``, the
    rounding error of the second form grows as ``1/q``, of the first as ``1/sqrt(q)``.

    Args:
        image_features: ``f``, ``[B, D]``, float64, float32, float16 or bfloat16; not normalized
            here: for cosines, pass normalized features.
        text_features: ``t``, ``[K, C, D]``, dtype of ``image_features``; K up to 64, D up to 1280.
        router_logits: ``[B, K]``, any of these dtypes (float64 only with float64 features).
        logit_scale: ``s``, the factor itself (after exp): a number, or a floating 0-dimensional
            tensor on the device of the features.
        temperature: temperature of the router's softmax, above 0.
        mix: ``"normalized"`` mixes features of norm 1, ``"raw"`` the features as they are.
        gram: `mixture_gram` of these text features and this ``mix``, to avoid computing it again.
            It gets no gradient; ``text_features`` still get their full gradient.
        return_weights: also return ``w``.
        impl: ``"triton"`` (GPU kernels), ``"torch"`` (plain implementation, any device), or
            ``"auto"``: the kernels on a GPU except for float64, else the plain implementation.

    Returns:
        Logits ``[B, C]``, at least float32; with ``return_weights`` also the weights ``[B, K]``,
        at least float32. Differentiable once w.r.t. the features, ``router_logits`` and a tensor
        ``logit_scale``; gradients that are not needed are not computed.

    Raises:
        TypeError: a dtype is not as above.
        ValueError: shapes or devices do not match, K, C or D is 0, K or D is too large, the
            temperature is not above 0, or ``gram`` belongs to other features.
        RuntimeError: ``impl="triton"`` cannot run.
    """
    check_text(text_features, mix)
    check_mixture(image_features, text_features, router_logits, logit_scale, temperature)
    resolved = resolve(impl, text_features, image_features, router_logits)
    if gram is None:
        gram = mixture_gram(text_features, mix=mix, impl=impl)
    check_type(gram, "gram", MixtureGram, "a MixtureGram", "compute it with mixture_gram")
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
