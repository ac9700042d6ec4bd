"""Small CLIPs of transformers with random weights. Needs transformers."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers

from helpers.engine_checks import perturb

SIZES: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 24,
        "intermediate_size": 60,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 16,
    },
}
EOS = 49407


def their_clip(
    act: str = "quick_gelu",
    eos: int = EOS,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **options: Any,
) -> transformers.CLIPModel:
    """A random `CLIPModel`, its biases and scales away from zero and one."""
    parts = copy.deepcopy(SIZES)
    parts["text"] |= {"hidden_act": act, "eos_token_id": eos, **(text or {})}
    parts["vision"] |= {"hidden_act": act, **(vision or {})}
    config = transformers.CLIPConfig(
        text_config=parts["text"],
        vision_config=parts["vision"],
        **{"projection_dim": 16, **options},
    )
    torch.manual_seed(0)
    return perturb(transformers.CLIPModel(config).eval())


def their_tokenizer() -> Any:
    """The CLIP tokenizer of transformers, made of open_clip's vocabulary."""
    ours = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(word, word): number for word, number in ours.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(ours.bpe_ranks, key=ours.bpe_ranks.__getitem__)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")
        return transformers.CLIPTokenizer.from_pretrained(folder)


def their_folder(path: Path, **options: Any) -> Path:
    """A folder as `save_pretrained` writes it: weights, tokenizer, preprocessing."""
    their_clip(**options).save_pretrained(path)
    their_tokenizer().save_pretrained(path)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 48},
        crop_size={"height": 48, "width": 48},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
        resample=2,
    ).save_pretrained(path)
    return path
