"""Fixtures: small CLIPs with random weights, and the bundled ones."""

import copy

import open_clip
import pytest
import torch

from fastprompt import FrozenCLIP, load_clip

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 24,
        "heads": 2,
        "layers": 2,
    },
}


def small_model(layout: type = open_clip.CLIP, seed: int = 0, **text: object) -> torch.nn.Module:
    """A random open_clip model of a layout; ``text`` changes the text tower's settings."""
    config = copy.deepcopy(SMALL)
    config["text_cfg"] |= text
    torch.manual_seed(seed)
    return layout(**config).eval()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # the models here are small: on a busy machine two threads mostly wait for each other
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_clip() -> FrozenCLIP:
    return load_clip(small_model())


@pytest.fixture(scope="session")
def bundled_clip() -> FrozenCLIP:
    return load_clip("tiny-shapes")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
