"""Peak memory of the mixture's logits and gradients, in one process per implementation."""

import pytest
import torch

from ..common.machine import in_child, peak_memory
from ..common.sizes import ON_GPU, THREADS
from . import kernel_groups

SIZE = (128, 1000, 8)
RUNGS = ("eager", "fastprompt")
# documented limit on two cores, relative to eager
MOST_MEMORY = 0.1


def peak(rung):
    """Return the peak bytes above the inputs."""
    torch.set_num_threads(THREADS)
    # libraries allocate their buffers in the first call
    kernel_groups.mixture(2, 3, 2, 16, backward=True, compiled=False).rungs[rung]()
    return peak_memory(kernel_groups.mixture(*SIZE, backward=True, compiled=False).rungs[rung])


@pytest.mark.skipif(ON_GPU, reason="host memory; on a GPU every group records peak_bytes")
@pytest.mark.benchmark(group="memory/mixture_logits/b128-c1000-k8")
def test_as_little_memory_as_promised(benchmark):
    peaks = {}

    def measure():
        peaks.update({rung: in_child(peak, rung) for rung in RUNGS})

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info |= {"peak_bytes": peaks}
    assert peaks["fastprompt"] <= MOST_MEMORY * peaks["eager"], peaks
