"""What the towers' tests share: small models, and the comparison of two engines."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from fastprompt import FrozenCLIP, load_clip
from fastprompt._utils.attention import plain_attention
from fastprompt.towers import ReferenceTextTower, TextTower
from helpers.models import SMALL, small_model

NAMES = ["cat", "very_small dog", "a long name of quite a few words", "fish", "red circle"]
# the class name behind the context, between its halves, before it, and among fixed words
TEMPLATES = {
    "end": "[ctx] {}.",
    "middle": "[ctx] {} [ctx].",
    "front": "{} [ctx].",
    "words": "a photo [ctx] of a {} on a table.",
    "halves": "[ctx] of [ctx] a {}.",
}
EXACT = 1e-10
SINGLE = 1e-5

# each is a text tower's settings beside those of `SMALL`; pad_mask is set by hand, see `text_clip`
BLOCK_OPTIONS: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True},
    "scale_heads": {"scale_heads": True},
    "scale_attn_inner": {"scale_attn_inner": True},
    "scale_attn": {"scale_attn": True},
    "scale_fc": {"scale_fc": True},
    "ls_init_value": {"ls_init_value": 0.3},
}
BLOCK_OPTIONS["every_option"] = {k: v for o in BLOCK_OPTIONS.values() for k, v in o.items()}


def relative(a: Tensor, b: Tensor) -> float:
    """``||a - b|| / ||b||``."""
    assert a.shape == b.shape
    return float((a.detach() - b.detach()).norm() / b.detach().norm())


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A learnable tensor without zeros worth the name."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def perturb(model: nn.Module, seed: int = 7) -> nn.Module:
    """Biases and scales away from zero and one, where a forgotten one would go unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim in (1, 3) or name.endswith("positional_embedding"):
                p += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def frozen(model: nn.Module, *, dtype: torch.dtype = torch.float64, **options: Any) -> FrozenCLIP:
    """A perturbed model behind `load_clip`."""
    return load_clip(perturb(model).to(dtype), **options)


@cache
def text_clip(
    layout: type = open_clip.CLIP, pad_mask: bool = False, quick_gelu: bool = False, **text: Any
) -> FrozenCLIP:
    """A three-layer text tower in float64; made once for each set of settings."""
    if quick_gelu:
        config = copy.deepcopy(SMALL)
        config["text_cfg"] |= {"layers": 3, **text}
        torch.manual_seed(0)
        model = layout(**config, quick_gelu=True).eval()
    else:
        model = small_model(layout, **{"layers": 3, **text})
    if pad_mask:  # open_clip has the switch, but no key for it in its configurations
        model.text.use_pad_mask = True
    return frozen(model)


def _shrunk(name: str) -> dict[str, Any]:
    """One of open_clip's own configurations, a few layers of a few numbers."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    patch = config["vision_cfg"]["patch_size"]
    small = {"image_size": 3 * patch, "width": 32, "layers": 3, "head_width": 16}
    config["vision_cfg"] |= small
    config["text_cfg"] |= {"width": 24, "heads": 2, "layers": 3}
    return {**config, "embed_dim": 16}


def _siglip_like() -> FrozenCLIP:
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= {"layers": 3, "pool_type": "avg"}
    config["text_cfg"] |= {
        "context_length": 64,
        "layers": 3,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
        "norm_kwargs": {"eps": 1e-6},
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config, init_logit_bias=-10.0).eval()
    return frozen(model, tokenizer=open_clip.SimpleTokenizer(context_length=64))


ARCHITECTURES = (
    "vit-b-32",
    "vit-b-16-quickgelu",
    "siglip-like",
    "custom-text",
    "tiny-shapes",
)


@cache
def architecture(name: str) -> FrozenCLIP:
    """Whole CLIPs in float64, one for each of `ARCHITECTURES`."""
    torch.manual_seed(0)
    if name == "vit-b-32":
        return frozen(open_clip.CLIP(**_shrunk("ViT-B-32")).eval())
    if name == "vit-b-16-quickgelu":
        return frozen(open_clip.CLIP(**_shrunk("ViT-B-16-quickgelu")).eval())
    if name == "custom-text":
        return frozen(open_clip.CustomTextCLIP(**_shrunk("ViT-B-32")).eval())
    return _siglip_like() if name == "siglip-like" else load_clip("tiny-shapes").double()


def agree(
    engines: Sequence[Callable[[], Tensor]], learnable: Mapping[str, Tensor], tolerance: float
) -> None:
    """Assert that both engines give the same output, and the same gradient in every tensor.

    Each row of each gradient must be there, so that agreement is not that of two zeros.
    """
    outputs = [engine() for engine in engines]
    weight = noise(*outputs[0].shape, seed=99, dtype=outputs[0].dtype).detach()
    tensors = list(learnable.values())
    gradients = [torch.autograd.grad((out * weight).sum(), tensors) for out in outputs]
    errors = {"features": relative(*outputs)}
    for name, fast, reference in zip(learnable, *gradients, strict=True):
        rows = reference.reshape(-1, reference.shape[-1]).norm(dim=-1)
        assert rows.min() > 1e-6, f"no gradient reaches a row of {name}"
        errors[name] = relative(fast, reference)
    assert max(errors.values()) <= tolerance, errors


def text_engines(
    clip: FrozenCLIP,
    n_ctx: int = 3,
    *,
    names: Sequence[str] = NAMES,
    depth: int = 1,
    tolerance: float = EXACT,
    class_chunk: int | None = None,
    **options: Any,
) -> TextTower:
    """Compare both text towers with one another; the fast one is returned."""
    fast = TextTower(clip, names, n_ctx, class_chunk=class_chunk, **options)
    reference = ReferenceTextTower(clip, names, n_ctx, **options)
    context = noise(*fast.context_shape, seed=1, dtype=clip.dtype)
    learnable = {"context": context} if n_ctx else {}
    deep = None
    if depth > 1:
        deep = noise(*deep_shape(fast, depth), seed=2, dtype=clip.dtype)
        learnable |= {"deep": deep} if n_ctx else {}
    if learnable:
        agree([lambda: fast(context, deep), lambda: reference(context, deep)], learnable, tolerance)
    else:
        assert relative(fast(context, deep), reference(context, deep)) <= tolerance
    return fast


def deep_shape(tower: TextTower, depth: int) -> tuple[int, ...]:
    """The shape of a tower's deep prompts."""
    many = () if tower.n_prompts is None else (tower.n_prompts,)
    return (*many, depth - 1, tower.n_ctx, tower.parts.width)


def embedded(clip: FrozenCLIP, words: str) -> Tensor:
    """The token embeddings of a phrase: with them the tower must equal plain text."""
    tokens = clip.tokenizer([words])[0]
    end = int(tokens.argmax())
    return clip.text_parts.token_embedding(tokens[1:end]).detach()


def sentences(clip: FrozenCLIP, texts: Sequence[str]) -> Tensor:
    """open_clip's own features of literal sentences."""
    with plain_attention():
        return clip.model.encode_text(clip.tokenizer(list(texts)))


def resblocks(module: nn.Module) -> nn.ModuleList:
    """The blocks of an open_clip transformer, whoever holds it."""
    return module.transformer.resblocks


@contextmanager
def no_work(clip: FrozenCLIP) -> Iterator[None]:
    """Fail where any layer of the model runs."""

    def refuse(module: nn.Module, *_: Any) -> None:
        raise AssertionError(f"{type(module).__name__} ran before the input was checked")

    leaves = [m for m in clip.model.modules() if not list(m.children())]
    handles = [leaf.register_forward_pre_hook(refuse) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counted_rows(transformer: nn.Module) -> Iterator[list[int]]:
    """Token rows that pass through each block's MLP."""
    rows = [0] * len(transformer.resblocks)

    def counter(i: int) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows[i] += args[0].numel() // args[0].shape[-1]

        return count

    handles = [
        block.mlp.c_fc.register_forward_pre_hook(counter(i))
        for i, block in enumerate(transformer.resblocks)
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
