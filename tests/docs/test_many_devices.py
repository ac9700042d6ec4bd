"""The page docs/guides/many_devices.md: its numbers are those of the shapes."""

import re
from pathlib import Path

import pytest

from fastprompt.methods.advpt import AdvPTConfig
from fastprompt.methods.ampt import AMPTConfig
from fastprompt.methods.apt import APTConfig
from fastprompt.methods.capt import CAPTConfig
from fastprompt.methods.nap import NAPConfig
from fastprompt.prompts import DeepPrompts, PromptMixture, TextContext

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "many_devices.md").read_text("utf-8")
WIDTH, IMAGE, DEPTH, EMBED = 512, 768, 12, 512  # of ViT-B/16
MIX = AMPTConfig()
PROMPTS = {
    "CoOp, APT": lambda: TextContext(APTConfig.default_n_ctx, WIDTH),
    "AdvPT": lambda: TextContext(AdvPTConfig.default_n_ctx, WIDTH),
    "AMPT": lambda: PromptMixture(MIX.n_prompts, MIX.default_n_ctx, WIDTH, EMBED),
    "CAPT": lambda: DeepPrompts(DEPTH, CAPTConfig.default_n_ctx, WIDTH, IMAGE),
    "NAP": lambda: DeepPrompts(DEPTH, NAPConfig.default_n_ctx, WIDTH, IMAGE, refiners=DEPTH - 1),
}


@pytest.mark.parametrize("method", PROMPTS)
def test_bytes_of_a_step(method: str) -> None:
    (row,) = re.findall(rf"^\| {method} \| (.*) \| (.*) MB \|$", PAGE, re.M)
    count = sum(p.numel() for p in PROMPTS[method]().parameters())
    assert row == (f"{count:,}", f"{4 * count / 1e6:.2f}")


def test_bytes_of_the_class_features() -> None:
    assert f"{4 * 1000 * EMBED / 1e6:.2f} MB for 1,000 classes" in " ".join(PAGE.split())
