"""What the authors' own code computed, and the weights, images and prompts that it was given.

``tests/data/golden`` holds the outputs of the public code of NAP (MAPT at d26abda), APT, AdvPT,
MaPLe and FAP in float64. Each input tensor is drawn from its name, as for those runs.
"""

import json
import math
import zlib
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastprompt import FrozenCLIP, load_clip

DATA = Path(__file__).parents[1] / "data" / "golden"
NAMES = ["cat", "small dog", "a long name indeed", "red circle", "bird"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOLERANCE = 1e-9  # norm-relative

# the largest error of each file so far, in this process; `assert_near` adds to the file read last
ERRORS: dict[str, float] = {}
_read: list[str] = []


def outputs(name: str) -> dict[str, Tensor]:
    _read.append(name)
    return load_file(DATA / f"{name}.safetensors")


def learning_rates() -> dict[str, Tensor]:
    _read.append("learning_rates")
    rates = json.loads((DATA / "learning_rates.json").read_text())
    return {name: torch.tensor(each, dtype=torch.float64) for name, each in rates.items()}


def normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers that depend on the name alone, float32."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator)


def drawn(name: str, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
    """The same, rounded to float16."""
    return (std * normal(name, shape)).half().float()


def prompt(name: str, *shape: int) -> Tensor:
    """A trainable tensor, float64."""
    if name.split(".")[0] in ("context", "deep", "visual"):
        std = 0.3
    else:
        std = 0.1 if name.endswith("bias") else shape[-1] ** -0.5
    return drawn(name, shape, std).double()


def probes(name: str, tensor: Tensor) -> Tensor:
    """Norm and four dot products with drawn tensors: what the files hold of a large tensor."""
    t = tensor.detach().double()
    directions = (normal(f"probe.{name}.{i}", tuple(t.shape)).double() for i in range(4))
    return torch.stack([t.norm(), *((t * d).sum() for d in directions)])


def images() -> tuple[Tensor, Tensor]:
    """Float64 ``[4, 3, 64, 64]`` and labels; with eps 8/255 no pixel leaves [0, 1]."""
    generator = torch.Generator().manual_seed(zlib.crc32(b"images"))
    return (0.1 + 0.8 * torch.rand(4, 3, 64, 64, generator=generator)).double(), torch.arange(4)


def _std(name: str, p: Tensor) -> float:
    if name.endswith("bias"):
        return 0.1
    if any(part in name for part in ("positional", "class_embedding", "token_embedding")):
        return 0.05
    by_columns = name.endswith(("proj", "projection")) and not name.endswith("c_proj.weight")
    return (p.shape[0] if by_columns else p[0].numel()) ** -0.5


def clip() -> FrozenCLIP:
    """OpenAI's layout in small, float64: 64 pixels, patch 16, four layers in each encoder."""
    vision = open_clip.CLIPVisionCfg(layers=4, width=768, patch_size=16, image_size=64)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=512, heads=8, layers=4)
    model = open_clip.CLIP(256, vision, text, quick_gelu=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "logit_scale":
                p.fill_(torch.tensor(math.log(30.0)).half().float())
            elif "ln_" in name and name.endswith("weight"):
                p.copy_((1 + drawn(name, tuple(p.shape), 0.2)).half().float())
            else:
                p.copy_(drawn(name, tuple(p.shape), _std(name, p)))
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, STD))
    found = load_clip(model.eval().double(), mean=MEAN, std=STD)
    assert torch.equal(found.mean.flatten().double(), mean), "mean in float32 costs 1e-7"
    assert torch.equal(found.std.flatten().double(), std)
    return found


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.detach().double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def assert_near(got: Tensor, wanted: Tensor, name: str = "") -> None:
    assert got.shape == wanted.shape, name
    error = relative(got, wanted)
    ERRORS[_read[-1]] = max(error, ERRORS.get(_read[-1], 0.0))
    assert error <= TOLERANCE, f"{name}: {error:.1e}"
