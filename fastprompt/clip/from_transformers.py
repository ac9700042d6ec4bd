"""Convert a transformers ``CLIPModel`` to open_clip's ``CLIP``, which has the same features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor, nn

from .._utils.unpickling import first_line
from .transformers_files import preprocessing, read_model, read_tokenizer, require_transformers
from .transformers_layout import to_open_clip

_ACTIVATIONS = ("quick_gelu", "gelu")
_OLD_EOS = 2  # of configurations that pool the token with the highest id
# a wrong activation or a missing bias differs by far more, float32 rounding by less
_ROUNDING = 1e-4


class Converted(NamedTuple):
    """A converted model.

    Attributes:
        model: an open_clip ``CLIP`` with float32 or float64 weights, on the device of the original.
        tokenizer: the one that was given, else that of the folder or repository, or None.
        name: the name for messages and results.
    """

    model: nn.Module
    tokenizer: Any
    name: str


class Tokens:
    """Calls a transformers tokenizer as open_clip's are called.

    Args:
        tokenizer: a ``PreTrainedTokenizerBase``.
        context_length: number of tokens of a text.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: list[str]) -> Tensor:
        """Return token ids ``[N, context_length]``."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(texts, max_length=self.context_length, **options).input_ids
        return ids


def convert(model: Any, tokenizer: Any = None, cache_dir: str | None = None) -> Converted:
    """Convert a ``CLIPModel``, which is not modified, or load one and convert it.

    Args:
        model: a ``CLIPModel``, the folder that its ``save_pretrained`` wrote, or ``"org/name"``.
        tokenizer: a tokenizer of transformers or of open_clip.
        cache_dir: the Hub's local cache. Default: that of huggingface_hub.

    Raises:
        ImportError: transformers is not installed.
        TypeError: ``model`` is neither a ``CLIPModel`` nor a name.
        ValueError: the model is not a CLIP with Vision Transformer, has an option that open_clip's
            lacks, its weights are incomplete, or its features differ from those of the result.
        FileNotFoundError: the folder, one of its files or the repository does not exist.
        PermissionError: the repository is private or gated, or does not exist.
        ConnectionError: the Hub cannot be reached, and the cache does not have the repository.
    """
    transformers = require_transformers()
    if isinstance(model, (str, Path)):
        name = str(model)
        folder, theirs = read_model(name, cache_dir)
        tokenizer = tokenizer or read_tokenizer(folder)
        pixels = preprocessing(folder)
    elif isinstance(model, transformers.CLIPModel):
        name, theirs, pixels = type(model).__name__, copy.deepcopy(model), {}
    else:
        raise TypeError(
            "model must be a transformers CLIPModel, its folder or its name with "
            f"source='transformers', got {type(model).__name__}"
        )
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in theirs.parameters()):
        theirs = theirs.float()
    config = theirs.config
    ours = _build(name, config, theirs)
    if isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        tokenizer = Tokens(tokenizer, config.text_config.max_position_embeddings)
    _check_features(name, theirs.eval(), ours)
    visual: Any = ours.visual
    for key, value in pixels.items():
        setattr(visual, key, value)
    return Converted(ours, tokenizer, name)


def check_end(model: Any, tokenizer: Any, name: str) -> None:
    """Raise ValueError if the tokenizer never produces the end token that the encoder pools."""
    if model.text_pool_type == "eos" and model.text_eos_id not in tokenizer(["a"])[0].tolist():
        raise ValueError(
            f"tokenizer: it never produces the end token of {name}, eos_token_id "
            f"{model.text_eos_id}; pass the tokenizer of this model"
        )


# ---- weights -----------------------------------------------------------------------------------


def _build(name: str, config: Any, theirs: nn.Module) -> nn.Module:
    text, image = config.text_config, config.vision_config
    if reason := _why_not(text, image):
        raise ValueError(f"model: {name} is not supported: {reason}")
    old = text.eos_token_id == _OLD_EOS
    pool = {} if old else {"pool_type": "eos", "eos_id": text.eos_token_id}
    ours = open_clip.CLIP(
        config.projection_dim,
        {
            "layers": image.num_hidden_layers,
            "width": image.hidden_size,
            "head_width": image.hidden_size // image.num_attention_heads,
            "mlp_ratio": image.intermediate_size / image.hidden_size,
            "patch_size": image.patch_size,
            "image_size": image.image_size,
            "norm_kwargs": {"eps": image.layer_norm_eps},
        },
        {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **pool,
        },
        quick_gelu=text.hidden_act == "quick_gelu",
    )
    layers = image.num_hidden_layers, text.num_hidden_layers
    try:
        state = to_open_clip(theirs.state_dict(), *layers)
        ours.load_state_dict(state)
    except (ValueError, RuntimeError) as error:  # the second for another shape
        raise ValueError(f"model: {name} is not supported: {first_line(error)}") from None
    first = next(theirs.parameters())
    return ours.to(first.device, first.dtype).eval()


def _why_not(text: Any, image: Any) -> str:
    """Return which setting open_clip's ``CLIP`` lacks; empty if it has all."""
    for part, config in (("text", text), ("image", image)):
        if config.hidden_act not in _ACTIVATIONS:
            return (
                f"the {part} encoder's activation is {config.hidden_act!r}; known: "
                f"{', '.join(_ACTIVATIONS)}"
            )
        if not isinstance(config.layer_norm_eps, float):
            return f"the {part} encoder's layer_norm_eps is {config.layer_norm_eps!r}"
    if text.hidden_act != image.hidden_act:
        return f"its encoders have two activations, {text.hidden_act!r} and {image.hidden_act!r}"
    if image.num_channels != 3:
        return f"its images have {image.num_channels} channels; only 3 are known"
    for key in ("image_size", "patch_size"):
        if not isinstance(getattr(image, key), int):
            return f"its {key} is {getattr(image, key)!r}; only squares are known"
    if not isinstance(text.eos_token_id, int) or isinstance(text.eos_token_id, bool):
        return f"its eos_token_id is {text.eos_token_id!r}; only one number is known"
    return ""


@torch.no_grad()
def _check_features(name: str, theirs: Any, ours: Any) -> None:
    """Compare both models' features of an image and of two texts, one of which is padded."""
    first = next(ours.parameters())
    generator = torch.Generator().manual_seed(0)
    side = theirs.config.vision_config.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator).to(first)
    length, vocabulary = ours.context_length, ours.vocab_size
    end = ours.text_eos_id if ours.text_pool_type == "eos" else vocabulary - 1
    ids = torch.randint(vocabulary - 1, (2, length), generator=generator)
    ids[ids == end] = 0
    ids[0, length // 2 :], ids[1, -1] = end, end
    ids = ids.to(first.device)
    images = theirs.get_image_features(pixel_values=pixels), ours.encode_image(pixels)
    texts = theirs.get_text_features(input_ids=ids), ours.encode_text(ids)
    for part, (found, our) in (("image", images), ("text", texts)):
        their = pooled(found)
        apart = float(((our - their).norm(dim=-1) / their.norm(dim=-1)).max())
        if not apart <= _ROUNDING:
            raise ValueError(
                f"model: {name} is not supported: its {part} features differ from those of its "
                f"weights in open_clip's CLIP by {apart:.1e}, relatively; it computes more than a "
                "CLIPModel, for example in a hook"
            )


def pooled(features: Any) -> Tensor:
    """Return the features; version 5 of transformers returns them in an output object."""
    out: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return out
