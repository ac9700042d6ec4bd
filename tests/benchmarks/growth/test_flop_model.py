"""The closed formula is what a step costs."""

import dataclasses
from functools import cache

import open_clip
import pytest
from helpers.models import small_model

from benchmarks.common.timing import count_flops
from benchmarks.growth import flop_model, sweeps
from benchmarks.growth.sweeps import Point, make_steps, sizes
from fastprompt import FrozenCLIP, load_clip

RUNGS = sweeps.RUNGS
SMALL = {
    "nap": Point(depth=2, classes=5, batch=3, steps=1),
    "nap, one layer": Point(depth=1, classes=5, batch=2, steps=2),
    "ampt": Point(method="ampt", classes=5, batch=3, steps=1, n_ctx=4, n_prompts=3),
    "ampt, many images": Point(method="ampt", classes=5, batch=128, steps=1, n_ctx=1, n_prompts=3),
}
LARGE = {
    "nap": Point(classes=4, batch=1, steps=1, depth=2),
    "ampt": Point(method="ampt", classes=4, batch=1, steps=1, n_ctx=4, n_prompts=2),
}
NEAR = 1e-3  # far below the 5 % that would do: a wrong term shows
ROUGH = 0.02  # where class names count by their mean length


@pytest.fixture(scope="module")
def vit_b_32() -> FrozenCLIP:
    """ViT-B-32's widths in two layers: each layer of the twelve costs the same."""
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2
    return load_clip(open_clip.CLIP(**config))


@cache
def small_clip() -> FrozenCLIP:
    return load_clip(small_model(layers=3))


@cache
def counted_and_modeled(rung: str, point: Point, clip: FrozenCLIP) -> tuple[int, float]:
    """FLOPs of a step that runs: for small models that is quicker than tensors without values."""
    step = make_steps([rung], point, clip)[rung]
    return count_flops(step), flop_model.flops(sizes(step))


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", SMALL)
def test_the_formula_is_what_torch_counts(name, rung):
    counted, modeled = counted_and_modeled(rung, SMALL[name], small_clip())
    assert modeled == pytest.approx(counted, rel=NEAR)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", LARGE)
def test_the_formula_is_what_torch_counts_on_vit_b_32(name, rung, vit_b_32):
    counted, modeled = counted_and_modeled(rung, LARGE[name], vit_b_32)
    assert modeled == pytest.approx(counted, rel=NEAR)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize(
    "changed",
    [{"classes": 6}, {"batch": 4}, {"steps": 2}, {"n_ctx": 24}, {"n_prompts": 4}],
    ids=lambda changed: next(iter(changed)),
)
def test_the_formula_follows_each_size(changed, rung):
    point = SMALL["ampt" if "n_prompts" in changed else "nap"]
    before = counted_and_modeled(rung, point, small_clip())
    after = counted_and_modeled(rung, dataclasses.replace(point, **changed), small_clip())
    counted, modeled = after[0] - before[0], after[1] - before[1]
    assert counted > 0
    assert modeled == pytest.approx(counted, rel=NEAR)


def test_classes_in_chunks_cost_another_forward_pass():
    clip = small_clip()
    step = make_steps(["fastprompt"], SMALL["nap"], clip)["fastprompt"]
    whole = sizes(step)
    tower = type(step.tuner.model.text)
    options = {"n_ctx": whole.n_ctx, "class_chunk": 2}
    step.tuner.model.text = tower(clip, step.tuner.classnames, **options)
    cut = sizes(step)
    assert cut == dataclasses.replace(whole, chunked=True)
    assert flop_model.flops(cut) == pytest.approx(count_flops(step), rel=NEAR)
    assert flop_model.flops(cut) > flop_model.flops(whole)


@pytest.mark.parametrize("name", ["nap", "ampt"])
def test_the_formula_has_what_our_own_ops_do(name):
    step = make_steps(["fastprompt"], SMALL[name], small_clip())["fastprompt"]
    everything = count_flops(step)
    unseen = everything - step.flops()  # without values an op of our own counts as nothing
    shape = sizes(step)
    modeled = flop_model.flops(shape) - flop_model.flops(shape, own_ops=False)
    assert unseen > 1e-3 * everything
    assert modeled == pytest.approx(unseen, rel=ROUGH)


def test_rungs_without_a_formula_are_refused():
    step = make_steps(["eager-hoisted"], SMALL["nap"], small_clip())["eager-hoisted"]
    with pytest.raises(ValueError, match="eager-hoisted"):
        sizes(step)
