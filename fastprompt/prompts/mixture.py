"""From image features and the features of several prompts to logits: router and mixture (AMPT)."""

from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import check_choice, check_count, check_number
from .._utils.seeds import stream
from ..kernels import mixture_gram, mixture_logits
from ..kernels.mixture_logits import Mix, MixtureGram
from .init import normal
from .values import PromptValues


class Head(Protocol):
    """What makes logits of K prompts' text features in place of the cosine."""

    def prepare(self, text_features: Tensor) -> tuple[Tensor, ...]:
        """What depends on the text features ``[K, C, D]`` alone, without a graph."""

    def __call__(
        self, image_features: Tensor, text_features: Tensor, scale: Tensor, *prepared: Tensor
    ) -> Tensor:
        """Logits ``[B, C]`` of L2-normalized image features ``[B, D]``."""


class PromptRouter(nn.Module):
    """LayerNorm, Linear, GELU, Linear: an image feature to one number for each prompt.

    The last layer starts at zero: tuning begins with the plain average of the prompts. The form is
    our choice; AMPT's paper says that the router reads the image feature.

    Args:
        feature_width: D.
        n_prompts: K.
        hidden: the inner width; by default D / 4.
        seed: of the start values, those of `nn.Linear`.
    """

    def __init__(
        self, feature_width: int, n_prompts: int, *, hidden: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        check_count(n_prompts, "n_prompts")
        hidden = max(1, feature_width // 4) if hidden is None else check_count(hidden, "hidden")
        self.norm = nn.LayerNorm(feature_width)
        self.first, self.second = nn.Linear(feature_width, hidden), nn.Linear(hidden, n_prompts)
        generator = torch.Generator().manual_seed(seed)
        bound = feature_width**-0.5
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias):
                tensor.uniform_(-bound, bound, generator=generator)
            self.second.weight.zero_(), self.second.bias.zero_()

    def forward(self, image_features: Tensor) -> Tensor:
        """``[B, D]`` to ``[B, K]``."""
        x = image_features.to(self.first.weight.dtype)
        return self.second(F.gelu(self.first(self.norm(x))))


class MixtureHead(nn.Module):
    """Logits of a mixture of prompts: ``w = softmax(router(f) / T)``, see `mixture_logits`.

    Args:
        router: L2-normalized image features ``[B, D]`` to ``[B, K]``.
        temperature: T, above 0.
        mix: ``"normalized"`` mixes text features of length 1, ``"raw"`` as the tower gives them.
    """

    def __init__(
        self, router: nn.Module, *, temperature: float = 1.0, mix: Mix = "normalized"
    ) -> None:
        super().__init__()
        check_choice(mix, "mix", get_args(Mix))
        self.router, self.mix = router, mix
        self.temperature = check_number(temperature, "temperature", above=0)

    def extra_repr(self) -> str:
        # an evaluation knows a model by its weights and by this: no state dict holds these two
        return f"temperature={self.temperature}, mix={self.mix!r}"

    def weights(self, image_features: Tensor) -> Tensor:
        """How much of each prompt an image gets, ``[B, K]``, of L2-normalized features."""
        return (self.router(image_features) / self.temperature).softmax(dim=-1)

    def prepare(self, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """What depends on the text features ``[K, C, D]`` alone, without a graph."""
        gram = mixture_gram(text_features, mix=self.mix)
        return gram.gram, gram.inv_norm

    def forward(
        self, image_features: Tensor, text_features: Tensor, scale: Tensor, *prepared: Tensor
    ) -> Tensor:
        """Logits ``[B, C]``.

        Args:
            image_features: L2-normalized, ``[B, D]``.
            text_features: as the tower gives them, ``[K, C, D]``.
            scale: the factor in front of the cosine.
            prepared: from `prepare`.
        """
        gram = MixtureGram(prepared[0], prepared[1], self.mix) if prepared else None
        logits = self.router(image_features)
        return mixture_logits(
            image_features,
            text_features,
            logits,
            scale,
            temperature=self.temperature,
            mix=self.mix,
            gram=gram,
        )


class PlainMixtureHead(nn.Module):
    """The same logits spelled out, with one text feature for each image and class.

    Args:
        head: whose router, temperature and mixing it has.
    """

    def __init__(self, head: MixtureHead) -> None:
        super().__init__()
        self.head = head

    def weights(self, image_features: Tensor) -> Tensor:
        """See `MixtureHead.weights`."""
        return self.head.weights(image_features)

    def prepare(self, text_features: Tensor) -> tuple[()]:
        """Nothing: all is computed in each call."""
        return ()

    def forward(self, image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
        """See `MixtureHead.forward`."""
        text = text_features
        if self.head.mix == "normalized":
            text = F.normalize(text, dim=-1)
        mixed = torch.einsum("bk,kcd->bcd", self.weights(image_features), text)  # [B, C, D]
        return scale * torch.einsum("bd,bcd->bc", image_features, F.normalize(mixed, dim=-1))


class PromptMixture(nn.Module):
    """K text prompts and the router that weights them for each image (AMPT).

    Every prompt but the first starts with noise on its words too: prompts that start alike would
    get the same gradients, and stay alike.

    Args:
        n_prompts: K.
        n_ctx: M, tokens of each prompt.
        width: the text tower's width.
        feature_width: D, of the features.
        hidden: the router's inner width; by default D / 4.
        temperature, mix: of the mixture, see `MixtureHead`.
        seed: of the start values: N(0, 0.02), the router's as `nn.Linear` has them.
        start: start values of each prompt's first tokens, ``[at most M, width]``.
    """

    def __init__(
        self,
        n_prompts: int,
        n_ctx: int,
        width: int,
        feature_width: int,
        *,
        hidden: int | None = None,
        temperature: float = 1.0,
        mix: Mix = "normalized",
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count(n_prompts, "n_prompts")
        check_count(n_ctx, "n_ctx")
        tokens = normal(torch.Generator().manual_seed(seed), n_prompts, n_ctx, width)
        if start is not None:
            tokens[0, : len(start)] = 0
            tokens[:, : len(start)] += start.detach().to(tokens)
        self.tokens = nn.Parameter(tokens)
        own = stream(seed, "router", 0)
        router = PromptRouter(feature_width, n_prompts, hidden=hidden, seed=own)
        self.head = MixtureHead(router, temperature=temperature, mix=mix)

    def values(self) -> PromptValues:
        """What goes into the towers."""
        return PromptValues(self.tokens)
