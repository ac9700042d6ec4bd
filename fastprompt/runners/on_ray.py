"""A Ray cluster: one on this machine, or one that runs already."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .._utils.checks import MOST_THREADS, MOST_WORKERS, check_count, shown
from .base import Item, Result, Team, Work

AUTO = "auto"
_ADDRESS = re.compile(r"(?P<host>[^\s:/]+|\[[^\s/]+\]):(?P<port>[0-9]{1,5})")
_SECONDS = 10.0  # in which the address must answer
_QUIET = {
    "include_dashboard": False,
    "log_to_driver": False,  # errors of workers are returned, not printed
    "logging_level": "error",
}


@dataclass(frozen=True)
class Ray:
    """Computes items on the workers of a Ray cluster. Requires the extra ``ray``.

    Each worker has one GPU if the models are on one, else ``threads`` processors. If this process
    is connected to a cluster, with ``ray.init``, that one is used.

    Args:
        address: ``"HOST:PORT"`` of a cluster, or ``"auto"`` for the one that runs on this machine;
            None starts one on this machine, which ends with the work.
        workers: number of workers; by default, as many as the cluster has GPUs or processors for.
        threads: threads of torch in each worker. The bits of a result depend on it.

    Raises:
        ValueError, TypeError: an argument is out of range.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.address is not None and not isinstance(self.address, str):
            raise TypeError(f"address must be a string, got {shown(self.address)}")
        if self.address not in (None, AUTO) and not _ADDRESS.fullmatch(str(self.address)):
            raise ValueError(
                f"address must be HOST:PORT of a Ray cluster or 'auto', got {self.address!r}; "
                "start the command on a machine of the cluster"
            )
        check_count(self.threads, "threads", most=MOST_THREADS)
        if self.workers is not None:
            check_count(self.workers, "workers", most=MOST_WORKERS)

    @contextmanager
    def team(self, work: Work[Item, Result], device: torch.device) -> Iterator[Team[Item, Result]]:
        """Start workers that have the work.

        Raises:
            ConnectionError: the address cannot be reached.
            RuntimeError: the cluster has no processor or GPU for a worker, the workers do not
                start, or the work cannot be sent.
            ValueError: a worker has other packages, models or data.
        """
        from .team import RayTeam

        with self.connected() as ray:
            team = RayTeam(ray, work, self._needs(device), self.threads, self.workers)
            try:
                yield team
            finally:
                team.close()

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Connect to the cluster, for one or several teams; a connection that exists is used."""
        ray = import_ray()
        if ray.is_initialized():
            yield ray
            return
        self._connect(ray)
        try:
            yield ray
        finally:
            ray.shutdown()

    def _needs(self, device: torch.device) -> dict[str, float]:
        if device.type == "cuda":
            return {"num_gpus": 1, "num_cpus": 1}
        return {"num_cpus": self.threads}

    def _connect(self, ray: Any) -> None:
        own = self.address is None
        if not own and self.address != AUTO:
            _check_answers(str(self.address))
        here = {} if self.workers is None else {"num_cpus": self.workers * self.threads}
        try:
            ray.init(address="local" if own else self.address, **_QUIET, **(here if own else {}))
        except KeyboardInterrupt:
            raise
        # Ray exits if a cluster does not answer
        except (Exception, SystemExit) as error:
            with contextlib.suppress(Exception):
                ray.shutdown()
            where = "on this machine" if own else f"at {self.address}"
            raise ConnectionError(
                f"ray: there is no usable Ray cluster {where}: {_line(error)}"
            ) from error


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ImportError: it is not installed.
    """
    # no reports to others; a worker without a GPU may still see those of its machine
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"ray: Ray is not installed ({error}); pip install 'fastprompt[ray]', or run without it"
        ) from None
    return ray


def _check_answers(address: str) -> None:
    """Raise ConnectionError unless something answers: Ray itself would wait for minutes."""
    found = _ADDRESS.fullmatch(address)
    assert found is not None
    try:
        place = found["host"].strip("[]"), int(found["port"])
        socket.create_connection(place, _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"ray: the Ray cluster at {address} cannot be reached ({error}); start it with "
            "`ray start --head`, or correct the address"
        ) from None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
