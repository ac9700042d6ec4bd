"""The estimate of scaling: FLOPs and bytes of each method, and what the formula must give."""

import dataclasses
from functools import cache

import pytest
from helpers.models import small_model

from benchmarks.common.models import class_names
from benchmarks.common.timing import count_flops
from benchmarks.common.tuner_steps import random_images, tuner_steps
from benchmarks.gpu import scaling
from benchmarks.gpu.budget import FASTER, PUBLISHED, parts
from benchmarks.growth.flop_model import Sizes, flops, terms
from benchmarks.growth.sweeps import sizes
from fastprompt import FrozenCLIP, load_clip

NEAR = 1e-3
CLASSES, IMAGES = 5, 2


@cache
def small_clip() -> FrozenCLIP:
    return load_clip(small_model(layers=3))


def step_of(method: str):
    images = random_images(IMAGES, small_clip().image_size, CLASSES)
    found = tuner_steps(["fastprompt"], method.lower(), small_clip(), class_names(CLASSES), images)
    return found["fastprompt"]


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """The small model's sizes; so few classes would be computed whole on a CPU."""
    monkeypatch.setattr("fastprompt.towers.text.few_whole", lambda *sizes: False)
    return sizes(step_of("NAP"))


@pytest.mark.parametrize("name", [name for name in scaling.METHODS if name != "AdvPT"])
def test_a_methods_step_has_the_flops_that_torch_counts(name: str, base: Sizes) -> None:
    method = scaling.METHODS[name]
    s = method.step(base)
    smaller = {"depth": s.depth and base.depth, "router": s.router and s.features // 4}
    modeled = flops(dataclasses.replace(s, **smaller))
    if method.frozen:
        seen = terms(scaling.METHODS["CoOp"].step(base))
        modeled += seen["loss's images"] + seen["loss's logits"] / 2  # without a backward pass
    assert modeled == pytest.approx(count_flops(step_of(name)), rel=NEAR)


def test_advpt_has_no_images() -> None:
    found = parts(scaling.METHODS["AdvPT"].step(PUBLISHED), FASTER)
    images = {name: seconds for name, seconds in found.items() if not name.startswith("text")}
    assert images.pop("loss: matrix products") > 0  # logits
    assert not any(images.values())


def test_the_parameters_are_those_of_the_shapes() -> None:
    w, i, d, layers, m = 512, 768, 512, 12, 16
    router = 2 * d + d * d // 4 + d // 4 + d // 4 * 8 + 8
    deep = layers * (m * w + w * i + i)
    refiner = 4 * i * i + 3 * i
    wanted = {"CoOp": m * w, "APT": m * w, "AdvPT": 32 * w, "AMPT": 8 * 4 * w + router}
    wanted |= {"CAPT": deep, "NAP": deep + (layers - 1) * refiner}
    assert {name: scaling.learned(name) for name in scaling.METHODS} == wanted


def test_the_formula() -> None:
    slow, far = scaling.Fabric(1.0, 0.0), scaling.Fabric(1e30, 1.0)
    assert [scaling.all_reduce(3, world, slow) for world in (1, 2, 4)] == [0, 3, 4.5]
    assert [scaling.all_reduce(3, world, far) for world in (1, 2, 3, 64)] == [0, 2, 4, 12]
    free = scaling.Fabric(1e30, 0.0)
    assert scaling.speed_up("NAP", FASTER, free, 1, False) == pytest.approx(1)
    # the text stays whole, or is divided but for the prefix and the launches
    whole, divided = (scaling.speed_up("NAP", FASTER, free, 2, shards) for shards in (False, True))
    assert 1.9 < whole < divided < 2
    assert scaling.speed_up("AdvPT", FASTER, free, 64, False) == pytest.approx(1, rel=0.01)
    assert scaling.speed_up("NAP", FASTER, slow, 2, False) < 1e-6


def test_scaling_ends_where_processes_are_used_by_less_than_a_half() -> None:
    assert scaling._end([1.9, 3.5, 4.0, 7.9, 8.0]) == 8
    assert scaling._end([0.9, 1.0, 1.0, 1.0, 1.0]) == 1
