"""The compiled rung is one graph, and step by step it can be looked into."""

import pytest
import torch

from benchmarks.common import clips, models
from benchmarks.common.timing import count_flops
from benchmarks.common.tuner_steps import agreement, random_images, tuner_steps
from benchmarks.ladder import advpt_steps, group
from fastprompt import DeepPrompts


@pytest.fixture
def uncompiled_backend(monkeypatch):
    """What would be compiled is traced whole and run as it is."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **o: compile(f, fullgraph=True, backend="eager")
    )
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_compiled_rung_is_one_graph(kind, uncompiled_backend):
    clip, names = models.shared_clip("tiny-shapes", "cpu"), ["cat", "small dog"]
    prompts = DeepPrompts.for_clip(clip, 4)
    careful, compiled = (clips.CLIPS[r](clip, names, prompts) for r in group.CAREFUL)
    if kind == "text":
        found = [model.class_features() for model in (careful, compiled)]
    else:
        images = torch.rand(2, 3, clip.image_size, clip.image_size)
        found = [model.image_features(images) for model in (careful, compiled)]
    torch.testing.assert_close(*found)


def test_with_bf16_units_careful_and_fastprompt_use_them(bf16_units):
    """Within the tolerance of their dtype; fastprompt is timed in float32, too."""
    rungs = clips.in_both_precisions(("eager", "eager-careful", "fastprompt"))
    assert rungs == ("eager", "eager-careful", "fastprompt-fp32", "fastprompt")
    clip = models.shared_clip("tiny-shapes", "cpu")
    data = random_images(1, clip.image_size, 2)
    steps = tuner_steps(rungs, "capt", clip, ["cat", "dog"], data, steps=1, n_ctx=4)
    low = clips.low_dtypes()
    assert set(low) == {"eager-careful", "compiled", "fastprompt"}
    found = group.Group(dict.fromkeys(rungs), agreement(steps), dtypes=low).differences()
    errors = {rung: max(each.values()) for rung, each in found.items()}
    assert errors["fastprompt-fp32"] < 1e-4
    assert min(errors["eager-careful"], errors["fastprompt"]) > 1e-3  # they did run in bfloat16


def test_without_bf16_units_all_run_in_float32():
    rungs = ("eager", "eager-careful", "fastprompt")
    assert clips.in_both_precisions(rungs) == rungs
    assert clips.low_dtypes() == {}


def test_fastprompt_in_float32_is_in_float64_for_an_equality_check():
    double = models.shared_clip("tiny-shapes", "cpu", double=True)
    assert clips.execution("fastprompt-fp32", double) == {"engine": "fast", "precision": "fp64"}
    assert clips.execution("fastprompt", double)["precision"] == "auto"
    assert clips.execution("eager", double) == {"engine": "reference"}


def test_flops_are_seen_where_code_is_compiled(uncompiled_backend):
    clip = models.shared_clip("tiny-shapes", "cpu")
    step = advpt_steps.PhaseTwo("fastprompt", clip, ["cat", "small dog"], 4, 3)
    model = step.tuner.model
    with clips.step_by_step(model):
        wanted = count_flops(step)
    model.compiled = True
    step()
    with clips.step_by_step(model):
        assert not model.compiled
        assert count_flops(step) == wanted > 0
    with clips.step_by_step(model, compiled=True):
        assert model.compiled
    assert model.compiled
