"""Peak memory of the mixture's logits and gradients: a process of its own for each rung."""

import pytest
import torch

from ..common.machine import in_child, peak_memory
from ..common.sizes import ON_GPU, THREADS
from . import kernel_groups

SIZE = (128, 1000, 8)
RUNGS = ("eager", "fastprompt")
# what is promised, on two cores
MOST_MEMORY = 0.1


def peak(rung):
    """Peak bytes above the inputs."""
    torch.set_num_threads(THREADS)
    # libraries make their own buffers in their first call
    kernel_groups.mixture(2, 3, 2, 16, backward=True, compiled=False).rungs[rung]()
    return peak_memory(kernel_groups.mixture(*SIZE, backward=True, compiled=False).rungs[rung])


@pytest.mark.skipif(ON_GPU, reason="of the host's memory; on a GPU every rung says its peak_bytes")
@pytest.mark.benchmark(group="memory/mixture_logits/b128-c1000-k8")
def test_as_little_memory_as_promised(benchmark):
    peaks = {}

    def measure():
        peaks.update({rung: in_child(peak, rung) for rung in RUNGS})

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info |= {"peak_bytes": peaks}
    assert peaks["fastprompt"] <= MOST_MEMORY * peaks["eager"], peaks
