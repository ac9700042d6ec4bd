"""``precision="fp64"`` on a model with float32 weights computes everything in float64."""

import pytest
import torch
from helpers.models import small_model

from fastprompt import FrozenCLIP, load_clip
from fastprompt.data import ImageTensors
from fastprompt.methods.registry import TUNERS

NAMES = ["cat", "dog", "fox"]


@pytest.fixture(scope="module")
def double_clip() -> FrozenCLIP:
    return load_clip(small_model().double())


@pytest.fixture
def data(images: torch.Tensor) -> ImageTensors:
    return ImageTensors((images * 255).to(torch.uint8), torch.tensor([0, 1, 2, 0]))


def test_zero_shot(small_clip: FrozenCLIP, double_clip: FrozenCLIP, images: torch.Tensor) -> None:
    before = small_clip.fingerprint
    classifier = small_clip.zero_shot(NAMES, precision="fp64")
    logits, wanted = classifier(images), double_clip.zero_shot(NAMES)(images)
    assert logits.dtype == torch.float64
    # the normalization and the text features of a float32 model are rounded to float32
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, small_clip.zero_shot(NAMES)(images).double())
    # the user's model is not altered
    assert small_clip.dtype == torch.float32
    assert small_clip.fingerprint == before
    # a float64 model in float32
    assert double_clip.zero_shot(NAMES, precision="fp32")(images).dtype == torch.float64


@pytest.mark.parametrize("method", TUNERS)
def test_methods(
    method: str, small_clip: FrozenCLIP, data: ImageTensors, images: torch.Tensor, tmp_path
) -> None:
    settings = {"epochs": 1, "batch": 2, "n_ctx": 2, "precision": "fp64"}
    tuner = TUNERS[method](small_clip, NAMES, **settings)
    tuner.fit(data, data, tmp_path / "run", progress=False)
    assert {p.dtype for p in tuner.prompts.parameters()} == {torch.float64}
    logits = tuner.classifier(images)
    assert logits.dtype == torch.float64
    assert torch.equal(TUNERS[method].load(tmp_path / "run", small_clip).classifier(images), logits)
    assert tuner.classifier_for(["a", "b"])(images).dtype == torch.float64
    result = tuner.evaluate(data, ["pgd-1"], progress=False, sanity="off")
    assert {row["model"] for row in result.rows} == {"zero-shot", "tuned"}


@pytest.mark.parametrize("method", TUNERS)
def test_the_reference_engine_refuses_it(method: str, small_clip: FrozenCLIP) -> None:
    with pytest.raises(ValueError, match=r"^precision .*'fp32' .*reference.*'fp64'"):
        TUNERS[method](small_clip, NAMES, precision="fp64", engine="reference", n_ctx=2)
