"""What the kernels are measured against: the papers' formulas as they stand, in torch's code."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mixture(f: Tensor, t: Tensor, router: Tensor, s: Tensor) -> Tensor:
    """AMPT's logits ``[B, C]`` as the formula stands: a text feature for each image and class."""
    weights = router.float().softmax(-1).to(t.dtype)
    mixed = torch.einsum("bk,kcd->bcd", weights, F.normalize(t, dim=-1))
    return s * torch.einsum("bd,bcd->bc", f, F.normalize(mixed, dim=-1)).float()


def gram_mixture(f: Tensor, t: Tensor, router: Tensor, s: Tensor) -> Tensor:
    """The same by the Gram matrix."""
    weights = router.float().softmax(-1)
    t = F.normalize(t, dim=-1)
    gram = torch.einsum("kcd,lcd->klc", t, t).float()
    products = torch.einsum("bd,kcd->bkc", f, t).float()
    square = torch.einsum("bk,bl,klc->bc", weights, weights, gram)
    return s * torch.einsum("bk,bkc->bc", weights, products) * square.rsqrt()


def copied_prefix(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor
) -> Tensor:
    """Fused attention with a copy of the prefix in front of each padded class: ``[C, H, S, d]``."""
    keys, values = (
        torch.cat([p.transpose(1, 2).expand(len(q), -1, -1, -1), own], dim=2)
        for p, own in ((prefix_k, k), (prefix_v, v))
    )
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def layers(*features: Tensor) -> Tensor:
    """NAP's: one minus the cosine of every layer, ``[B]``; one side's layers, then the other's."""
    half = len(features) // 2
    pairs = zip(features[:half], features[half:], strict=True)
    return sum(  # type: ignore[return-value]
        1 - F.cosine_similarity(a.float().flatten(1), b.float().flatten(1)) for a, b in pairs
    )


def consistency(adv: Tensor, clean: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """CAPT's loss ``[B]`` by torch's functions, equal weights."""
    log_p = adv.float().log_softmax(-1)
    terms = [
        (log_p.exp() * (log_p - t.float().detach().log_softmax(-1))).sum(-1)
        for t in (clean, frozen)
    ]
    return F.cross_entropy(adv.float(), labels, reduction="none") + 0.5 * (terms[0] + terms[1])


def sign_step(x_adv: Tensor, x: Tensor, grad: Tensor, alpha: float, eps: float) -> Tensor:
    """PGD's step, in the order of operations that `torchattacks` has."""
    return _projected(x_adv + alpha * grad.sign(), x, eps)


def _projected(moved: Tensor, x: Tensor, eps: float) -> Tensor:
    return torch.clamp(x + torch.clamp(moved - x, min=-eps, max=eps), min=0, max=1)


def two_point_step(
    x_adv: Tensor, x_prev: Tensor, x: Tensor, grad: Tensor, alpha: Tensor, eps: float
) -> Tensor:
    """APGD's, a step size for each image, ``alpha`` ``[B]``."""
    tried = _projected(x_adv + alpha.view(-1, 1, 1, 1) * grad.sign(), x, eps)
    moved = x_adv + 0.75 * (tried - x_adv) + 0.25 * (x_adv - x_prev)
    return _projected(moved, x, eps)


def uniform_start(x: Tensor, eps: float) -> Tensor:
    """Uniform in the ball, drawn by torch's own generator."""
    return torch.clamp(x + torch.empty_like(x).uniform_(-eps, eps), min=0, max=1)
