"""Plain PyTorch implementation of NAP's feature term; runs on the CPU.

A row is one sample in one layer. With ``n_a = |a|``, ``n_b = |b|`` and ``gap = n_a - n_b``::

    1 - cos = ||a - b||^2 / (2 n_a n_b) - gap^2 / (2 n_a n_b)
    gap     = sum (a - b)(a + b) / (n_a + n_b)

This avoids cancellation while ``a`` is near ``b``. Where the norms differ by a factor above 2.6
(``gap^2 > n_a n_b``), ``1 - sum(a b) / (n_a n_b)`` is more accurate and is used instead.

On a CPU, a layer's time is that of its passes over memory. If no row needs the second form, three
sums in five passes give all: ``n_b^2 = n_a^2 - 2 a.(a - b) + ||a - b||^2``, and
``sum (a - b)(a + b) = 2 a.(a - b) - ||a - b||^2``.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .._dispatch import wide_dtype
from .arguments import Layers, LayersBackward
from .memory_format import gradient_like


def layer_consistency(layers: Layers) -> tuple[Tensor, Tensor]:
    """Return ``sum_l (1 - cos)`` of each sample, and the values saved for the backward.

    Returns:
        The sums ``[B]``, and ``n_a, n_b, gap, 1 - cos`` of each row in the order of the list,
        ``[R, 4]``; both at least float32.
    """
    norms = torch.cat([_row_norms(x, y) for x, y in zip(layers.a, layers.b, strict=True)])
    if not layers.samples:
        return norms.new_empty(0), norms
    return norms[:, 3].view(-1, layers.samples).sum(dim=0), norms


def _row_norms(a: Tensor, b: Tensor) -> Tensor:
    """Return ``n_a, n_b, gap, 1 - cos`` of each row, ``[R, 4]``."""
    a, b = (t.flatten(1).to(wide_dtype(t)) for t in (a, b))
    # reading values would synchronize with a GPU; a tracer has none
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if a.is_cpu and not traced:
        norms, near = _near_norms(a, b)
        if near.all():
            return norms
    return _any_norms(a, b)


def _near_norms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms as `_any_norms`, and whether a row's two are near enough for it, ``[R]``."""
    difference = a - b
    n_a = torch.linalg.vector_norm(a, dim=1)
    square_difference = torch.linalg.vector_norm(difference, dim=1).square_()
    product = 2 * difference.mul_(a).sum(dim=1)
    difference_of_squares = product - square_difference
    n_b = (n_a * n_a - difference_of_squares).sqrt_()
    gap = difference_of_squares / (n_a + n_b)
    between = n_a * n_b
    distance = ((square_difference - gap * gap) / between / 2).clamp_(min=0)
    # False for a norm of 0, and for NaN
    return torch.stack([n_a, n_b, gap, distance], dim=1), gap * gap <= between


def _any_norms(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    n_a, n_b = (a * a).sum(dim=1).sqrt(), (b * b).sum(dim=1).sqrt()
    zero = (n_a == 0) | (n_b == 0)
    gap = (difference * (a + b)).sum(dim=1) / torch.where(zero, 1.0, n_a + n_b)
    near = ((difference * difference).sum(dim=1) - gap * gap) / n_a / n_b / 2
    far = 1 - (a * b).sum(dim=1) / n_a / n_b
    # rounding can make the distance negative
    distance = torch.where(gap * gap > n_a * n_b, far, near).clamp(min=0)
    return torch.stack([n_a, n_b, gap, torch.where(zero, 1.0, distance)], dim=1)


def _coefficients(norms: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return factors ``[R]`` of ``a - b``, ``a`` and ``b`` in the gradient of a, then in that of b.

    With unit vectors ``a^`` and ``b^``, the gradient of a is ``((a^ - b^) - (1 - cos) a^) / n_a``,
    where ``a^ - b^ = (a - b) / n_a - gap b / (n_a n_b) = (a - b) / n_b - gap a / (n_a n_b)``. The
    form that divides ``a - b`` by the larger norm keeps both terms small.
    """
    n_a, n_b, gap, distance = norms.unbind(dim=1)
    zero = (n_a == 0) | (n_b == 0)
    n_a, n_b = torch.where(zero, 1.0, n_a), torch.where(zero, 1.0, n_b)
    grad = torch.where(zero, 0.0, grad.repeat(len(norms) // len(grad)))
    apart = 1 / torch.maximum(n_a, n_b)
    along = gap / n_a / n_b
    along_a, along_b = torch.where(n_a < n_b, along, 0.0), torch.where(n_a < n_b, 0.0, along)
    to_a, to_b = grad / n_a, grad / n_b
    return (
        to_a * apart,
        -to_a * (along_a + distance / n_a),
        -to_a * along_b,
        -to_b * apart,
        to_b * along_a,
        to_b * (along_b - distance / n_b),
    )


def layer_consistency_backward(given: LayersBackward) -> list[Tensor]:
    """Return the ``wanted`` gradients, of each a, then of each b."""
    grad, norms, a, b, wanted = given
    out = [gradient_like(x) for x, want in zip([*a, *a], wanted, strict=True) if want]
    if not len(grad):
        return out
    factors = torch.stack(_coefficients(norms, grad)).split([len(x) for x in a], dim=1)
    places = iter(out)
    for side in (0, 1):
        for layer, (x, y) in enumerate(zip(a, b, strict=True)):
            if wanted[side * len(a) + layer]:
                _write(next(places), x, y, factors[layer][3 * side : 3 * side + 3])
    return out


def _write(out: Tensor, a: Tensor, b: Tensor, factors: Tensor) -> None:
    """Write ``p (a - b) + q a + r b`` to ``out``, with ``factors`` p, q, r, ``[3, R]``."""
    p, q, r = factors.view(3, -1, *[1] * (a.ndim - 1))
    a, b = a.to(factors.dtype), b.to(factors.dtype)
    out.copy_(p * (a - b) + q * a + r * b)
