"""open_clip architectures shrunk to a few layers, and small models that compute something else."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip import timm_model
from torch import Tensor, nn

from helpers.engine_checks import perturb
from helpers.models import SMALL, small_model

WIDTH = 32
TIMM_VIT = {"depth": 2, "embed_dim": WIDTH, "num_heads": 2, "img_size": 64}
# open_clip's names of models, and what shrinks their image encoder
SHRUNK: dict[str, dict[str, Any]] = {
    "ViT-B-32": {},
    "ViT-B-16-quickgelu": {},
    "ViT-L-14-CLIPA": {},
    "RN50": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "RN101-quickgelu": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "convnext_base": {"timm": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}},
    "ViT-B-16-SigLIP": {"timm": TIMM_VIT},
    "EVA02-B-16": {"timm": TIMM_VIT},
    "vit_medium_patch16_gap_256": {"timm": TIMM_VIT},
    "PE-Core-T-16-384": {"timm": TIMM_VIT},
    "coca_ViT-B-32": {"attn_pooler_heads": 2, "attn_pooler_queries": 4},
}


def shrunk(name: str, monkeypatch: Any) -> nn.Module:
    """An open_clip architecture with few layers and random weights, in float64."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    vision, changes = config["vision_cfg"], dict(SHRUNK[name])
    if options := changes.pop("timm", None):
        vision["image_size"] = 64
        real = timm_model.timm.create_model
        monkeypatch.setattr(timm_model.timm, "create_model", partial(real, **options))
    elif "layers" not in changes:
        changes |= {"image_size": 2 * vision["patch_size"], "width": WIDTH, "layers": 2}
        changes |= {"head_width": 16}
    vision |= changes
    text = {"width": 24, "heads": 2, "layers": 2, "vocab_size": 49408}
    config["text_cfg"] |= text
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {**text, "attn_pooler_heads": 2}
    layout = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    layout = open_clip.CoCa if "multimodal_cfg" in config else layout
    torch.manual_seed(0)
    return perturb(layout(**{**config, "embed_dim": WIDTH}).eval()).double()


# ---- models that compute something else --------------------------------------------------------


class Sharper(nn.MultiheadAttention):
    """Attention with doubled queries."""

    def forward(self, query: Tensor, *args: Any, **options: Any) -> Any:
        return super().forward(2 * query, *args, **options)


class LoRA(nn.Module):
    """A linear layer with a low-rank change, without the attributes of `nn.Linear`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(base.in_features, 2) / 4)
        self.up = nn.Parameter(torch.randn(2, base.out_features) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down @ self.up


class LoRALinear(nn.Linear):
    """The same as a subclass, whose weight `nn.MultiheadAttention` reads past its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.flip(-1)


class Doubling(open_clip.CLIP):
    """A model whose `encode_image` is not its image encoder's output."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return super().encode_image(image, normalize) + 1


def _blocks(model: Any) -> Any:
    return model.visual.transformer.resblocks


def _stretched(_: Any, __: Any, out: Tensor) -> Tensor:
    return 1.5 * out + 0.1


def _conv_bias(model: Any) -> None:
    conv = nn.Conv2d(3, WIDTH, 16, stride=16)
    conv.weight = model.visual.conv1.weight
    model.visual.conv1 = conv


def _channels(n: int, model: Any) -> None:
    model.visual.conv1 = nn.Conv2d(n, WIDTH, 16, stride=16, bias=False)


def _lora(model: Any) -> None:
    for block in _blocks(model):
        block.mlp.c_fc, block.mlp.c_proj = LoRA(block.mlp.c_fc), LoRA(block.mlp.c_proj)


def _lora_attention(model: Any) -> None:
    for block in _blocks(model):
        block.attn.out_proj.__class__ = LoRALinear


def _lora_out(model: Any) -> None:
    # torch's attention reads out_proj.weight, which a wrapper without it refuses
    for block in _blocks(model):
        block.attn.out_proj = LoRA(block.attn.out_proj)
        block.attn.out_proj.weight = block.attn.out_proj.base.weight
        block.attn.out_proj.bias = block.attn.out_proj.base.bias


def _other_mlp(model: Any) -> None:
    for block in _blocks(model):
        block.mlp = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))


def _attention(model: Any) -> None:
    _blocks(model)[0].attn.__class__ = Sharper


def _encode_image(model: Any) -> None:
    model.__class__ = Doubling


def _encode_image_object(model: Any) -> None:
    own = model.encode_image
    model.encode_image = lambda image: own(image) * 2 + 1


def _encode_text(model: Any) -> None:
    own = model.encode_text
    model.encode_text = lambda text, normalize=False: F.normalize(own(text), dim=-1) + 0.1


def _tokens(model: Any) -> None:
    model.visual.output_tokens = True


# change, engine of the image tower ("" for the model's own forward), that of the text tower
ALTERED: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "conv-bias": (_conv_bias, "fast", "fast"),
    "one-channel": (partial(_channels, 1), "fast", "fast"),
    "five-channels": (partial(_channels, 5), "fast", "fast"),
    "lora-mlp": (_lora, "fast", "fast"),
    "other-mlp": (_other_mlp, "fast", "fast"),
    "output-tokens": (_tokens, "fast", "fast"),
    "lora-attention": (_lora_attention, "reference", "fast"),
    "lora-out": (_lora_out, "reference", "fast"),
    "attention": (_attention, "reference", "fast"),
    "block-hook": (lambda m: _blocks(m)[0].register_forward_hook(_stretched), "reference", "fast"),
    "visual-hook": (lambda m: m.visual.register_forward_hook(_stretched), "", "fast"),
    "encode_image": (_encode_image, "", "fast"),
    "encode_image-object": (_encode_image_object, "", "fast"),
    "text-hook": (
        lambda m: m.transformer.resblocks[1].register_forward_hook(_stretched),
        "fast",
        "reference",
    ),
    "encode_text": (_encode_text, "fast", ""),
}


def altered(name: str) -> nn.Module:
    """A small model with a change of `ALTERED`, in float64."""
    model = perturb(small_model())
    ALTERED[name][0](model)
    return model.double().eval()


def wide(**text: Any) -> nn.Module:
    """A model of images that are not square, in float64."""
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= {"image_size": (32, 64)}
    config["text_cfg"] |= text
    torch.manual_seed(0)
    return perturb(open_clip.CLIP(**config).eval()).double()
