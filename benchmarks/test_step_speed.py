"""A tuning step of deep prompts on the bundled CLIP, 80 classes, batch 8, PGD-3, by three rungs."""

import pytest

from fastprompt import DeepPrompts, load_clip, load_data

from .rungs import RUNGS, Batch, gate_results, make_rungs
from .timing import gate


@pytest.fixture(scope="module")
def rungs():
    clip, data = load_clip("tiny-shapes"), load_data("shapes")
    batch = Batch(data.test.images[:8].float() / 255, data.test.labels[:8])
    found = make_rungs(clip, data.classnames, DeepPrompts.for_clip(clip, 4), batch)
    gate(gate_results(found))
    return found


@pytest.mark.benchmark(group="step/deep-prompts/tiny-shapes")
@pytest.mark.parametrize("rung", RUNGS)
def test_step(benchmark, rungs, rung):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(rungs[rung].step, rounds=7, warmup_rounds=1)
