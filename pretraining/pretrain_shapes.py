"""Trains the bundled CLIP models, `tiny-shapes` and `tiny-shapes-robust`, on synthetic scenes.

    python -m pretraining.pretrain_shapes --help

Stage ``plain`` trains an open_clip ``CLIP`` from scratch with the contrastive loss on images and
captions that are drawn anew in every step. Stage ``robust`` fine-tunes only its image encoder on
adversarial images against the frozen text features, following TeCoA (Mao et al., "Understanding
zero-shot adversarial robustness for large-scale models", ICLR 2023). `pretraining.export_shapes`
then exports the stages' results to the package.
"""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from fastprompt._utils.files import write_bytes, write_json
from fastprompt.attacks.ascent import ascend
from fastprompt.data.sdf import PATTERNS, SHAPES
from fastprompt.data.shapes import COLORS, COUNTS, Scenes, render

from .captions import describe_scenes
from .training import contrastive_loss, encode_short_text, make_optimizer, set_rate

CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 48,
        "patch_size": 8,
        "width": 192,
        "layers": 6,
        "head_width": 64,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 96,
        "heads": 3,
        "layers": 4,
    },
}
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


def _pixels(scenes: Scenes, seed: int) -> Tensor:
    return render(scenes, seed=seed).float() / 255


def _normalize(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels - mean) / std


def train_plain(steps: int, batch: int, lr: float, seed: int) -> Any:
    """Train CLIP from scratch on ``steps`` batches of ``batch`` new images with captions."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**CONFIG).train()
    tokenizer = open_clip.SimpleTokenizer()
    optimizer = make_optimizer(list(model.named_parameters()), lr)
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(steps), desc="plain", mininterval=10)
    for step in bar:
        scenes = Scenes.random(batch, generator)
        captions = describe_scenes(scenes, generator)
        pixels = _normalize(_pixels(scenes, seed=seed * 10_000_019 + step))
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image(pixels)
            text = encode_short_text(model, tokenizer(captions.texts))
        loss = contrastive_loss(
            image.float(), text.float(), model.logit_scale.exp(), captions.true_of(scenes)
        )
        set_rate(optimizer, step, steps, lr)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp():.1f}")
    return model.eval()


def class_prompts() -> dict[str, list[str]]:
    """Return the prompts of the robust stage's tasks: color and shape, pattern, count."""
    pairs = [f"a photo of a {c} {s}." for c in COLORS for s in SHAPES]
    patterns = [f"a photo of a {p} shape." for p in PATTERNS]
    counts = ["a photo of one shape."] + [f"a photo of {c} shapes." for c in COUNTS[1:]]
    return {"pair": pairs, "pattern": patterns, "count": counts}


def class_labels(scenes: Scenes) -> dict[str, Tensor]:
    """Return each scene's labels for `class_prompts`, int64 ``[N]`` each."""
    pair = scenes.color * len(SHAPES) + scenes.shape
    return {"pair": pair, "pattern": scenes.pattern, "count": scenes.count}


@torch.no_grad()
def text_features(model: Any) -> dict[str, Tensor]:
    """Return the normalized text features of `class_prompts`, ``[C, D]`` each."""
    tokenizer = open_clip.SimpleTokenizer()
    return {
        name: F.normalize(encode_short_text(model, tokenizer(prompts)), dim=-1)
        for name, prompts in class_prompts().items()
    }


def _question_loss(
    model: Any, pixels: Tensor, text: dict[str, Tensor], labels: dict[str, Tensor]
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        image = model.encode_image(_normalize(pixels))
    image = F.normalize(image.float(), dim=-1)
    scale = model.logit_scale.exp()
    losses = [F.cross_entropy(scale * image @ text[k].T, labels[k]) for k in text]
    return torch.stack(losses).sum()


def train_robust(
    plain: Any, steps: int, batch: int, lr: float, seed: int, eps: float, attack_steps: int
) -> Any:
    """Fine-tune a copy of ``plain``'s image encoder on PGD images; text and scale stay frozen."""
    torch.manual_seed(seed + 1)
    model = copy.deepcopy(plain).requires_grad_(False)
    text = text_features(model)
    model.visual.requires_grad_(True)
    optimizer = make_optimizer(list(model.visual.named_parameters()), lr)
    generator = torch.Generator().manual_seed(seed + 1)
    alpha = eps / attack_steps * 1.25
    bar = tqdm(range(steps), desc="robust", mininterval=10)
    for step in bar:
        scenes = Scenes.random(batch, generator)
        labels = class_labels(scenes)
        clean = _pixels(scenes, seed=(seed + 1) * 10_000_019 + step)
        start = (torch.rand(clean.shape, generator=generator) * 2 - 1) * eps
        adv = (clean + start).clamp(0, 1)
        model.visual.requires_grad_(False)
        adv = ascend(
            partial(_question_loss, model, text=text, labels=labels),
            clean,
            adv,
            alpha=alpha,
            eps=eps,
            steps=attack_steps,
            counts=torch.zeros(batch, 2, dtype=torch.int64),
        )
        model.visual.requires_grad_(True)
        loss = _question_loss(model, adv, text, labels)
        set_rate(optimizer, step, steps, lr)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.visual.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _save(model: Any, out: Path, stage: str, settings: dict[str, Any]) -> None:
    """Write the weights and, next to them, the settings of their training."""
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    write_bytes(out / f"{stage}.safetensors", save(state))
    write_json(out / f"{stage}.json", settings)


def load_stage(out: Path, stage: Literal["plain", "robust"]) -> Any:
    """Load the model that a stage wrote to ``out``, in eval mode."""
    model = open_clip.CLIP(**CONFIG)
    model.load_state_dict(load_file(out / f"{stage}.safetensors"))
    return model.eval()


def main(
    stage: Literal["plain", "robust"],
    out: Path = Path("pretrain-shapes"),
    steps: int = 3400,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    eps: float = 4 / 255,
    attack_steps: int = 2,
) -> None:
    """Run one stage; ``robust`` starts from the result of ``plain`` in the folder ``out``."""
    settings: dict[str, Any] = {"steps": steps, "batch": batch, "lr": lr, "seed": seed}
    # on a CPU, plain attention's backward is several times faster than the fused one's at 37 tokens
    with sdpa_kernel(SDPBackend.MATH):
        if stage == "plain":
            model = train_plain(steps, batch, lr, seed)
        else:
            settings |= {"eps": eps, "attack_steps": attack_steps}
            model = train_robust(
                load_stage(out, "plain"), steps, batch, lr, seed, eps, attack_steps
            )
    _save(model, out, stage, settings)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
