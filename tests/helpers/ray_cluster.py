"""A Ray cluster of simulated machines on this one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

NEEDED = pytest.importorskip("ray", reason="needs Ray, which the extra ray brings")


@contextlib.contextmanager
def cluster(machines: int = 2) -> Iterator[Any]:
    """So many machines with one processor each, to which this process is connected."""
    from ray.cluster_utils import Cluster

    from fastprompt.runners.on_ray import _QUIET, import_ray

    ray = import_ray()
    own = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    found = Cluster(initialize_head=True, head_node_args=own)
    try:
        for _ in range(machines - 1):
            found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        ray.init(address=found.address, **{**_QUIET, "include_dashboard": None})
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
