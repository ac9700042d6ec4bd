"""Class features, forward and backward: 77 tokens a class against a shared prefix, packed."""

import pytest

from fastprompt import load_clip, load_data

from .models import class_names, random_clip
from .text import RUNGS, Rung
from .timing import gate

N_CTX = 16


def gated(clip, names):
    """Both rungs, which agree."""
    rungs = {rung: Rung(rung, clip, names, N_CTX) for rung in RUNGS}
    gate({rung: run() for rung, run in rungs.items()})
    return rungs


@pytest.fixture(scope="module")
def small():
    return gated(load_clip("tiny-shapes"), load_data("shapes").classnames)


@pytest.fixture(scope="module")
def large():
    return gated(random_clip(), class_names(200))


@pytest.mark.benchmark(group="towers/text/c80")
@pytest.mark.parametrize("rung", RUNGS)
def test_80_classes_of_the_bundled_model(benchmark, small, rung):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(small[rung], rounds=7, warmup_rounds=2)


@pytest.mark.benchmark(group="towers/text/c200")
@pytest.mark.parametrize(("rung", "rounds"), [("eager", 2), ("fastprompt", 7)])
def test_200_classes_of_random_clip(benchmark, large, rung, rounds):
    # the gate was a round to warm up; figures to be quoted come from `benchmarks.text`
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(large[rung], rounds=rounds)
