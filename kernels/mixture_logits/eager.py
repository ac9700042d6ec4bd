"""Plain PyTorch implementation of the mixture; runs on the CPU.

Symbols: ``f_b`` image feature, ``t^_kc`` feature of class c with prompt k, normalized unless raw,
``w`` the router's weights, ``q_bc = w_b^T G_c w_b`` the squared norm of an image's mixture,
``r = q^(-1/2)``, ``cos_bc = r * sum_k w_bk f_b.t^_kc``.
"""

import torch
from torch import Tensor

from .._dispatch import wide_dtype
from .arguments import Mixture, MixtureBackward, Prompts

# entries of the text gradient to compute at once, so that they stay in a core's cache
_CHUNK = 1 << 19


def _inverse_root(squared: Tensor) -> Tensor:
    """Return ``squared ** -0.5``, or 0 where ``squared`` is 0 or, by rounding, negative."""
    return torch.where(squared > 0, squared.rsqrt(), 0.0)


def _pairs(weights: Tensor) -> Tensor:
    """Return ``w_bk w_bl``."""
    return (weights[:, :, None] * weights[:, None]).flatten(1)  # [B, K*K]


def mixture_gram(given: Prompts) -> tuple[Tensor, Tensor]:
    """``G_c[k, l] = t^_kc . t^_lc``, ``[K, K, C]``, and ``1 / |t_kc|`` (1 for raw), ``[K, C]``."""
    text = given.text
    prompts = text.to(wide_dtype(text)).transpose(0, 1)  # [C, K, D]
    gram = torch.bmm(prompts, prompts.transpose(1, 2)).permute(1, 2, 0).contiguous()
    if not given.normalized:
        return gram, gram.new_ones(text.shape[:2])
    inv_norm = _inverse_root(gram.diagonal().T)  # [K, C]
    return gram.mul_(inv_norm[:, None]).mul_(inv_norm), inv_norm.contiguous()


def mixture_logits(given: Mixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``s * cos``, the weights, and for the backward ``cos`` and ``r``, ``[B, C]``."""
    image, text, router, scale, gram, inv_norm, temperature = given
    dtype = gram.dtype
    image, router = image.to(dtype), router.to(dtype)
    # subtract the maximum before the division, which might overflow
    weights = ((router - router.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
    inverse = _inverse_root(_pairs(weights) @ gram.flatten(0, 1))  # [B, C]
    cosine = torch.zeros_like(inverse)
    product = torch.empty_like(inverse)
    for k, features in enumerate(text):
        torch.mm(image * weights[:, k, None], features.to(dtype).T, out=product)
        cosine.addcmul_(product, inv_norm[k])
    cosine.mul_(inverse)
    return cosine * scale, weights, cosine, inverse


def mixture_logits_backward(
    given: MixtureBackward,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of image, text, router and scale, empty where not wanted.

    With ``g`` the gradient of the logits, ``alpha = g s r`` and ``beta = -1/2 g s cos r^2``::

        df_b  = sum_k w_bk Z_bk,   Z_bk = sum_c alpha_bc t^_kc
        dw_bk = f_b . Z_bk + 2 sum_cl beta_bc G_c[k, l] w_bl
        dt^_kc = sum_b w_bk alpha_bc f_b + sum_l Gamma_c[k, l] t^_lc
        Gamma_c[k, l] = 2 sum_b beta_bc w_bk w_bl
    """
    dlogits, image, text, router = given.dlogits, given.image, given.text, given.router
    scale, gram, weights, cosine = given.scale, given.gram, given.weights, given.cosine
    alpha = dlogits * given.inverse * scale
    twice_beta = -alpha * cosine * given.inverse
    wide_image = image.to(gram.dtype)
    dimage, drouter = image.new_empty(0), router.new_empty(0)
    dtext, dscale = text.new_empty(0), scale.new_empty(0)
    if given.wants_image or given.wants_router:
        found, dmix = _through_products(alpha, wide_image, given)
        dimage = found.to(image.dtype) if given.wants_image else dimage
    if given.wants_router:
        n_prompts = weights.shape[1]
        spread = (twice_beta @ gram.flatten(0, 1).T).view(-1, n_prompts, n_prompts)
        dmix.baddbmm_(spread, weights[:, :, None])
        dw = dmix.squeeze(2)
        dw = dw if given.dweights is None else dw + given.dweights
        centered = dw - (weights * dw).sum(dim=1, keepdim=True)
        drouter = (weights * centered / given.temperature).to(router.dtype)
    if given.wants_text:
        dtext = _text_gradient(alpha, twice_beta, wide_image, given)
    if given.wants_scale:
        dscale = (dlogits * cosine).sum().to(scale.dtype)
    return dimage, dtext, drouter, dscale


def _through_products(
    alpha: Tensor, image: Tensor, given: MixtureBackward
) -> tuple[Tensor, Tensor]:
    """Return the image gradient, and ``f_b . Z_bk`` as ``[B, K, 1]``."""
    weights = given.weights
    dimage = torch.zeros_like(image)
    dmix = weights.new_empty(*weights.shape, 1)
    for k, features in enumerate(given.text):
        back = (alpha * given.inv_norm[k]) @ features.to(alpha.dtype)  # [B, D]
        dimage.addcmul_(back, weights[:, k, None])
        if given.wants_router:
            dmix[:, k, 0] = (image * back).sum(dim=1)
    return dimage, dmix


def _text_gradient(
    alpha: Tensor, twice_beta: Tensor, image: Tensor, given: MixtureBackward
) -> Tensor:
    """Compute the text gradient, in chunks of a few classes with all their prompts.

    The normalization removes the component along ``t_kc``: subtract it on ``Gamma``'s diagonal.
    """
    text, weights = given.text, given.weights
    n_prompts, n_classes, width = text.shape
    dtext = torch.empty_like(text, memory_format=torch.contiguous_format)
    pairs = _pairs(weights)
    step = max(1, _CHUNK // (n_prompts * width))
    for first in range(0, n_classes, step):
        part = slice(first, first + step)
        inv = given.inv_norm[:, part].T[:, :, None]  # [c, K, 1]
        prompts = text[:, part].to(alpha.dtype).transpose(0, 1)  # [c, K, D]
        shares = alpha[:, part].T[:, None] * weights.T * inv  # [c, K, B]
        found = (shares.flatten(0, 1) @ image).view(prompts.shape)
        gamma = (twice_beta[:, part].T @ pairs).view(-1, n_prompts, n_prompts)
        if given.normalized:
            along = (gamma * given.gram[:, :, part].permute(2, 0, 1)).sum(dim=2)
            along += (found * prompts).sum(dim=2)  # dt^ . t^
            gamma.diagonal(dim1=1, dim2=2).sub_(along)
        gamma.mul_(inv).mul_(inv.transpose(1, 2))  # now w.r.t. t, not t^
        dtext[:, part] = found.baddbmm_(gamma, prompts).transpose(0, 1)
    return dtext
