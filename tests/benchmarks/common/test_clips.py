"""The compiled rung is one graph, and step by step it can be looked into."""

import pytest
import torch

from benchmarks.common import clips, models
from benchmarks.common.timing import count_flops
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
