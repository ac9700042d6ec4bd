"""Router and mixture of AMPT: logits from image features and several prompts' text features."""

from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import (
    MOST_TOKENS,
    MOST_WEIGHT,
    MOST_WIDTH,
    check_choice,
    check_count,
    check_number,
    check_seed,
)
from .._utils.seeds import stream
from ..kernels import mixture_gram, mixture_logits
from ..kernels.mixture_logits import MAX_PROMPTS, Mix, MixtureGram
from .init import check_start, normal
from .values import PromptValues


class Head(Protocol):
    """Interface of modules that compute logits from the text features of K prompts."""

    def prepare(self, text_features: Tensor) -> tuple[Tensor, ...]:
        """Compute tensors that depend only on text features ``[K, C, D]``, without a graph."""

    def __call__(
        self, image_features: Tensor, text_features: Tensor, scale: Tensor, *prepared: Tensor
    ) -> Tensor:
        """Compute logits ``[B, C]`` from L2-normalized image features ``[B, D]``."""


class PromptRouter(nn.Module):
    """Map an image feature to one logit per prompt: LayerNorm, Linear, GELU, Linear.

    The last layer is initialized to zero, so that tuning starts from the plain average of the
    prompts. The architecture is our choice; AMPT's paper says that the router takes the image
    feature.

    Args:
        feature_width: width of the image features, D.
        n_prompts: number of prompts, K.
        hidden: width of the hidden layer; by default D / 4.
        seed: seed of the initial values, which are those of `nn.Linear`.
    """

    def __init__(
        self, feature_width: int, n_prompts: int, *, hidden: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        check_count(feature_width, "feature_width", most=MOST_WIDTH)
        check_count(n_prompts, "n_prompts", most=MAX_PROMPTS)
        hidden = max(1, feature_width // 4) if hidden is None else hidden
        check_count(hidden, "hidden", most=MOST_WIDTH)
        check_seed(seed)
        self.norm = nn.LayerNorm(feature_width)
        self.first, self.second = nn.Linear(feature_width, hidden), nn.Linear(hidden, n_prompts)
        generator = torch.Generator().manual_seed(seed)
        bound = feature_width**-0.5
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias):
                tensor.uniform_(-bound, bound, generator=generator)
            self.second.weight.zero_(), self.second.bias.zero_()

    def forward(self, image_features: Tensor) -> Tensor:
        """Map image features ``[B, D]`` to logits ``[B, K]``."""
        x = image_features.to(self.first.weight.dtype)
        return self.second(F.gelu(self.first(self.norm(x))))


class MixtureHead(nn.Module):
    """Logits of a mixture of prompts: ``w = softmax(router(f) / T)``, see `mixture_logits`.

    Args:
        router: module that maps L2-normalized image features ``[B, D]`` to logits ``[B, K]``.
        temperature: softmax temperature T, above 0.
        mix: ``"normalized"`` mixes L2-normalized text features, ``"raw"`` unnormalized ones.
    """

    def __init__(
        self, router: nn.Module, *, temperature: float = 1.0, mix: Mix = "normalized"
    ) -> None:
        super().__init__()
        check_choice(mix, "mix", get_args(Mix))
        self.router, self.mix = router, mix
        self.temperature = check_number(temperature, "temperature", above=0, high=MOST_WEIGHT)

    def extra_repr(self) -> str:
        # evaluations identify a model by its state dict and this text; only the text has these two
        return f"temperature={self.temperature}, mix={self.mix!r}"

    def weights(self, image_features: Tensor) -> Tensor:
        """Compute the prompts' weights ``[B, K]`` from L2-normalized image features ``[B, D]``."""
        return (self.router(image_features) / self.temperature).softmax(dim=-1)

    def prepare(self, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the tensors that depend only on text features ``[K, C, D]``, without a graph."""
        gram = mixture_gram(text_features, mix=self.mix)
        return gram.gram, gram.inv_norm

    def forward(
        self, image_features: Tensor, text_features: Tensor, scale: Tensor, *prepared: Tensor
    ) -> Tensor:
        """Compute logits ``[B, C]``.

        Args:
            image_features: L2-normalized, ``[B, D]``.
            text_features: unnormalized, ``[K, C, D]``.
            scale: scale factor of the cosine.
            prepared: the output of `prepare`.
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
    """Plain implementation of `MixtureHead`, with one text feature per image and class.

    Args:
        head: the head whose router, temperature and ``mix`` it uses.
    """

    def __init__(self, head: MixtureHead) -> None:
        super().__init__()
        self.head = head

    def weights(self, image_features: Tensor) -> Tensor:
        """See `MixtureHead.weights`."""
        return self.head.weights(image_features)

    def prepare(self, text_features: Tensor) -> tuple[()]:
        """Return no tensors: each call computes everything."""
        return ()

    def forward(self, image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
        """See `MixtureHead.forward`."""
        text = text_features
        if self.head.mix == "normalized":
            text = F.normalize(text, dim=-1)
        mixed = torch.einsum("bk,kcd->bcd", self.weights(image_features), text)  # [B, C, D]
        return scale * torch.einsum("bd,bcd->bc", image_features, F.normalize(mixed, dim=-1))


class PromptMixture(nn.Module):
    """K text prompts and a router that weights them for each image (AMPT).

    In all prompts but the first, noise is added to ``start`` too: prompts with equal initial values
    would get equal gradients and stay equal.

    Args:
        n_prompts: number of prompts, K.
        n_ctx: number of tokens per prompt, M.
        width: width of the text encoder.
        feature_width: width of the features, D.
        hidden: width of the router's hidden layer; by default D / 4.
        temperature, mix: settings of the mixture, see `MixtureHead`.
        seed: seed of the initial values: N(0, 0.02); those of the router are as in `nn.Linear`.
        start: initial values of each prompt's first tokens, ``[at most M, width]``.
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
        check_count(n_prompts, "n_prompts", most=MAX_PROMPTS)
        check_count(n_ctx, "n_ctx", most=MOST_TOKENS)
        check_count(width, "width", most=MOST_WIDTH)
        check_seed(seed)
        check_start(start, n_ctx, width)
        tokens = normal(torch.Generator().manual_seed(seed), n_prompts, n_ctx, width)
        if start is not None:
            tokens[0, : len(start)] = 0
            tokens[:, : len(start)] += start.detach().to(tokens)
        self.tokens = nn.Parameter(tokens)
        own = stream(seed, "router", 0)
        router = PromptRouter(feature_width, n_prompts, hidden=hidden, seed=own)
        self.head = MixtureHead(router, temperature=temperature, mix=mix)

    def values(self) -> PromptValues:
        """Return the inputs to the towers."""
        return PromptValues(self.tokens)
