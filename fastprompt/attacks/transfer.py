"""Attacks whose images transfer to other models: MI-FGSM, DI-FGSM and TI-FGSM."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    Fraction,
    check_count,
    check_number,
    check_seed,
    parse_fraction,
)
from .._utils.types import Model
from ..kernels import pgd_step
from ..kernels.pgd_step.eager import count_gradients
from ..kernels.random_start.eager import philox
from .base import Batch
from .climb import Ascent
from .iterated import IteratedAttack
from .losses import cross_entropy
from .random_start import start_key
from .slots import State

_RESIZED = (1 << 31) + 2  # random numbers other than those of the restarts and of Square


class MIFGSM(IteratedAttack):
    """MI-FGSM: sign steps along an average of the gradients with momentum.

    Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, algorithm 1: from the
    clean image, ``g <- decay * g + grad / mean(|grad|)``, ``x_adv <- P(x_adv + alpha * sign(g))``.
    The paper divides by the sum of ``|grad|``, which changes no sign. The images equal those of
    `torchattacks.MIFGSM`. A gradient that is zero or not finite adds nothing to g.

    Args:
        model: as for `PGD`.
        eps: radius in pixel units, a float or a string such as ``"8/255"``.
        alpha: step size in pixel units, a float or a string; the paper's is ``eps / steps``.
        steps: gradient steps.
        decay: weight of the previous average; 0 for the gradient alone.
        samples, stop, batch: as for `PGD`.
        seed: seed of random transformations, which depend only on (seed, image index, step).

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    resize_rate: float = 1.0
    diversity_prob: float = 0.0
    kernel: Tensor | None = None  # smooths the gradient, [K]

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        alpha: Fraction = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        *,
        samples: int = 1,
        stop: bool = False,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, samples=samples, stop=stop, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        self.alpha = parse_fraction(alpha, "alpha")
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        self.decay = check_number(decay, "decay", low=0)
        self.seed = check_seed(seed)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(eps={self.eps * 255:g}/255, alpha={self.alpha * 255:g}/255, "
            f"steps={self.steps}, decay={self.decay:g}, seed={self.seed})"
        )

    def ascent(self, batch: Batch) -> Ascent:
        varies = self.diversity_prob > 0
        return _DiverseAscent(self, batch) if varies else _MomentumAscent(self, batch)


class DIFGSM(MIFGSM):
    """DI-FGSM: gradients at randomly resized and padded images.

    Xie et al., "Improving transferability of adversarial examples with input diversity", CVPR 2019:
    DI2-FGSM with ``decay=0``, M-DI2-FGSM with ``decay=1``. With probability ``diversity_prob``, the
    image is resized bilinearly to a random size from ``resize_rate`` times its size on, and padded
    with zeros to its own size, at a random place. The paper pads to a larger size, which
    transformers with position embeddings do not take. With the same draws, the images equal those
    of `torchattacks.DIFGSM`, which draws once per batch and not per image.

    Args:
        model, eps, alpha, steps, decay, samples, stop, batch, seed: as for `MIFGSM`.
        resize_rate: smallest size, as a fraction of the image's, in (0, 1].
        diversity_prob: probability of a transformation, in [0, 1].

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        alpha: Fraction = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        *,
        samples: int = 1,
        stop: bool = False,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, eps, alpha, steps, decay, samples=samples, stop=stop, batch=batch, seed=seed
        )
        self.resize_rate = check_number(resize_rate, "resize_rate", above=0, high=1)
        self.diversity_prob = check_number(diversity_prob, "diversity_prob", low=0, high=1)


class TIFGSM(DIFGSM):
    """TI-FGSM: gradients smoothed by a Gaussian, which stand for those at shifted images.

    Dong et al., "Evading defenses to transferable adversarial examples by translation-invariant
    attacks", CVPR 2019, equation 8. The smoothed gradient is then used as by `MIFGSM`; TI-DIM is
    ``decay=1, diversity_prob=0.7``. The images equal those of `torchattacks.TIFGSM`, if that has
    ``diversity_prob=0``: by default it also resizes the images, as DI-FGSM does.

    Args:
        model, eps, alpha, steps, decay, samples, stop, batch, seed: as for `MIFGSM`.
        len_kernel: side of the Gaussian kernel in pixels, odd.
        nsig: standard deviations from the kernel's center to its edge.
        resize_rate, diversity_prob: as for `DIFGSM`.

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        alpha: Fraction = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        len_kernel: int = 15,
        nsig: float = 3,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.0,
        *,
        samples: int = 1,
        stop: bool = False,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            eps,
            alpha,
            steps,
            decay,
            resize_rate,
            diversity_prob,
            samples=samples,
            stop=stop,
            batch=batch,
            seed=seed,
        )
        if check_count(len_kernel, "len_kernel", most=4096) % 2 == 0:
            raise ValueError(f"len_kernel must be odd, got {len_kernel}")
        self.kernel = gaussian(len_kernel, check_number(nsig, "nsig", above=0))


class _MomentumAscent:
    """MI-FGSM, or TI-FGSM, on one batch, as an `Ascent` for `climb`."""

    attempts = 1

    def __init__(self, attack: MIFGSM, batch: Batch) -> None:
        self.attack, self.batch, self.steps = attack, batch, attack.steps
        kernel = attack.kernel
        self.kernel = None if kernel is None else kernel.to(batch.images)

    def begin(self, rows: Tensor, attempt: int) -> State:
        x = self.batch.images[rows]
        return {"x": x, "adv": x, "g": torch.zeros_like(x), "index": self.batch.indices[rows]}

    def loss(self, logits: Tensor, state: State) -> Tensor:
        return cross_entropy(logits, state["labels"])

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        # the average hides zero gradients: count those of the loss
        count_gradients(grad, state["counts"])
        if self.kernel is not None:
            grad = smooth(grad, self.kernel)
        size = grad.abs().mean(dim=(1, 2, 3), keepdim=True)
        usable = size.isfinite() & (size > 0)
        state["g"] = torch.where(usable, grad / size, 0) + self.attack.decay * state["g"]
        state["adv"] = pgd_step(
            state["adv"], state["x"], state["g"], alpha=self.attack.alpha, eps=self.attack.eps
        )

    def result(self, state: State) -> Tensor:
        return state["adv"]


class _DiverseAscent(_MomentumAscent):
    """DI-FGSM on one batch: `climb` takes the gradients at the images that `varied` returns."""

    def __init__(self, attack: MIFGSM, batch: Batch) -> None:
        super().__init__(attack, batch)
        self.key = start_key(attack.seed, 0, batch.images.device)
        self.drawn = 0  # passes in the current step

    def varied(self, adv: Tensor, state: State) -> Tensor:
        """Return the images, each resized and padded or not, ``[S, C, H, W]``."""
        samples = self.attack.samples
        number = state["step"] * samples + self.drawn % samples
        self.drawn += 1
        sizes, places, apply = self.draw(state["index"], number, adv.shape[2:])
        moved = resize_and_pad(adv, sizes, places)
        return torch.where(apply[:, None, None, None], moved, adv)

    def draw(self, index: Tensor, number: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
        """Draw sizes and places, int64 ``[S, 2]`` for height and width, and which are applied."""
        words = philox(
            (
                number,
                torch.full_like(index, _RESIZED),
                index & 0xFFFFFFFF,
                (index >> 32) & 0xFFFFFFFF,
            ),
            self.key[0],
        )
        full = torch.tensor(list(shape), device=index.device)  # [2]
        least = (full * self.attack.resize_rate).long()
        sizes = least + ((words[0][:, None] * (full - least)) >> 32)
        rest = torch.stack(words[1:3], dim=1) * (full - sizes)
        return sizes, rest >> 32, words[3] < self.attack.diversity_prob * 2**32


def resize_and_pad(images: Tensor, sizes: Tensor, places: Tensor) -> Tensor:
    """Resize each image bilinearly to its own, smaller size, and pad it with zeros.

    Args:
        images: ``[B, C, H, W]``.
        sizes, places: height and width, and top and left corner, int64 ``[B, 2]``.

    Returns:
        ``[B, C, H, W]``: `F.interpolate` without aligned corners, then `F.pad`, of each image.
    """
    rows, columns = (
        _weights(images, side, sizes[:, axis, None], places[:, axis, None])
        for axis, side in enumerate(images.shape[2:])
    )
    return rows[:, None] @ images @ columns[:, None].mT


def _weights(like: Tensor, side: int, size: Tensor, place: Tensor) -> Tensor:
    """Return the weight of each pixel (last) in each pixel of the padded image, ``[B, S, S]``."""
    pixels = torch.arange(side, device=like.device)
    own = pixels - place  # [B, S]
    at = (own + 0.5).double() * side / size - 0.5
    weights = (1 - (at[:, :, None] - pixels).abs()).clamp_min(0)
    inside = (own >= 0) & (own < size)
    return (weights * inside[:, :, None]).to(like.dtype)


def gaussian(length: int, nsig: float) -> Tensor:
    """Return a normalized Gaussian up to ``nsig`` standard deviations, float64 ``[K]``."""
    at = torch.linspace(-nsig, nsig, length, dtype=torch.float64)
    kernel = torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
    return kernel / kernel.sum()


def smooth(grad: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel of ``[B, C, H, W]`` with ``kernel kernel^T``, zeros outside."""
    channels, half = grad.shape[1], len(kernel) // 2
    down = kernel.to(grad.dtype).view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    grad = F.conv2d(grad, down, padding=(half, 0), groups=channels)
    return F.conv2d(grad, down.mT, padding=(0, half), groups=channels)
