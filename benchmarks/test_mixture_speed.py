"""Logits of a mixture of prompts: from Gram matrices against the form with ``[B, C, D]``.

Forward and all four gradients, float32, 128 images, 1,000 classes, 8 prompts, width 512.
"""

import pytest
import torch
import torch.nn.functional as F

from fastprompt.kernels import mixture_logits

from .conftest import THREADS
from .machine import in_child, peak_memory
from .timing import by_turns, gate, ratio

SIZE = (128, 1000, 8, 512)
RUNGS = ("plain", "fastprompt")
# what is promised, on two cores
LEAST_SPEEDUP, MOST_MEMORY = 5.0, 0.1


def plain(image, text, router, scale):
    weights = router.softmax(dim=1)
    mixed = torch.einsum("bk,kcd->bcd", weights, F.normalize(text, dim=-1))
    return scale * torch.einsum("bd,bcd->bc", image, F.normalize(mixed, dim=-1))


class Rung:
    """Logits and gradients, against one fixed direction."""

    def __init__(self, rung, n_images, n_classes, n_prompts, width):
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(shape, generator=generator)

        # prompts of one class are alike, as those of CLIP are
        text = random(n_prompts, n_classes, width) + random(n_classes, width)
        image = F.normalize(random(n_images, width), dim=1)
        self.inputs = {
            "image": image.requires_grad_(),
            "text": text.requires_grad_(),
            "router": random(n_images, n_prompts).requires_grad_(),
            "scale": torch.tensor(100.0, requires_grad=True),
        }
        self.direction = random(n_images, n_classes)
        self.logits = plain if rung == "plain" else mixture_logits

    def __call__(self):
        logits = self.logits(*self.inputs.values())
        found = torch.autograd.grad(logits, list(self.inputs.values()), self.direction)
        return {"logits": logits.detach()} | dict(zip(self.inputs, found, strict=True))


def peak(rung):
    """Peak bytes above the inputs, in a process of its own."""
    torch.set_num_threads(THREADS)
    Rung(rung, 2, 3, 2, 16)()  # libraries make their own buffers in their first call
    return peak_memory(Rung(rung, *SIZE))


@pytest.fixture(scope="module")
def rungs():
    rungs = {rung: Rung(rung, *SIZE) for rung in RUNGS}
    gate({rung: run() for rung, run in rungs.items()}, baseline="plain")
    return rungs


@pytest.mark.benchmark(group="kernels/mixture_logits/b128-c1000-k8-d512")
@pytest.mark.parametrize(("rung", "rounds"), [("plain", 3), ("fastprompt", 15)])
def test_forward_and_backward(benchmark, rungs, rung, rounds):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(rungs[rung], rounds=rounds, warmup_rounds=1)


@pytest.mark.benchmark(group="kernels/mixture_logits/b128-c1000-k8-d512/by-turns")
def test_as_many_times_faster_as_promised(benchmark, rungs):
    found = {}

    def measure():
        found.update(ratio(by_turns(rungs, rounds=5), "plain", "fastprompt"))

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info |= {"ratios": {"plain/fastprompt": found}}
    assert found["medians"] >= LEAST_SPEEDUP, found


@pytest.mark.benchmark(group="kernels/mixture_logits/b128-c1000-k8-d512/memory")
def test_as_little_memory_as_promised(benchmark):
    peaks = {}

    def measure():
        peaks.update({rung: in_child(peak, rung) for rung in RUNGS})

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info |= {"peak_bytes": peaks}
    assert peaks["fastprompt"] <= MOST_MEMORY * peaks["plain"], peaks
