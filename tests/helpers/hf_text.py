"""A CLIP whose text tower is a Hugging Face model with random weights. Needs transformers."""

from functools import cache

import open_clip
import torch
import transformers

from fastprompt import FrozenCLIP, load_clip

from .engine_checks import perturb
from .models import SMALL

WIDTH = 24

CONFIG = {
    "vocab_size": 49408,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "max_position_embeddings": 80,
    # these start at 0.02, where a forgotten position would hardly show
    "initializer_range": 0.2,
}

MODELS = {
    "bert-mean": ("BertConfig", "mean_pooler"),
    "bert-cls": ("BertConfig", "cls_pooler"),
    "roberta-cls": ("RobertaConfig", "cls_pooler"),
    "roberta-mean": ("RobertaConfig", "mean_pooler"),
}


@cache
def hf_clip(name: str = "bert-mean") -> FrozenCLIP:
    from open_clip.hf_model import HFTextEncoder  # needs transformers

    config, pooler = MODELS[name]
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**SMALL)
    model.text = HFTextEncoder(
        "never-downloaded",
        16,
        config=getattr(transformers, config)(**CONFIG),
        pooler_type=pooler,
        proj_type="mlp",
    )
    model.context_length = 77
    return load_clip(perturb(model.eval()).double())
