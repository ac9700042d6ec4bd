"""Work on a Ray cluster: results in order, lost workers and machines, errors."""

import os
import platform
import socket
import threading
from pathlib import Path

import pytest
import torch
from helpers.ray_cluster import Squares, cluster

from fastprompt.runners import Ray
from fastprompt.runners import team as teams
from fastprompt.runners.worker import Worker

pytest.importorskip("ray", reason="needs Ray, which the extra ray brings")
pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def machines():
    with cluster(2) as found:
        yield found


def lines(log: Path) -> list[tuple[int, int]]:
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()]


def squares(work: Squares, count: int, **options: int) -> list[int]:
    with Ray(**options).team(work, CPU) as team:
        return list(team.each(range(count)))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_each_computed_once(machines, tmp_path, workers):
    log = tmp_path / "log"
    assert squares(Squares(log), 12, workers=workers) == [i * i for i in range(12)]
    assert sorted(item for item, _ in lines(log)) == list(range(12))
    assert len({pid for _, pid in lines(log)}) <= workers


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_twice(machines, tmp_path):
    log = tmp_path / "log"
    assert squares(Squares(log, kill=(2, 5)), 8) == [i * i for i in range(8)]
    assert sorted(item for item, _ in lines(log)) == list(range(8))


def test_an_item_that_ends_its_workers_ends_the_work(machines, tmp_path):
    with pytest.raises(RuntimeError, match="the square of 3 ended 4 workers"):
        squares(Squares(tmp_path / "log", always=(3,)), 6)


def test_an_error_names_the_item_the_worker_and_its_traceback(machines, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        squares(Squares(tmp_path / "log", wrong=(4,)), 6)
    said = str(caught.value)
    assert f"{platform.node()} (process" in said
    assert "failed at the square of 4: KeyError: 'no square of 4'" in said
    (note,) = caught.value.__notes__
    assert "in __call__" in note
    assert "Traceback" in note


def test_a_caller_that_stops_leaves_nothing_to_the_next(machines, tmp_path):
    with Ray().team(Squares(tmp_path / "log", slow=0.2), CPU) as team:
        results = team.each(range(8))
        assert next(results) == 0
        results.close()
        assert list(team.each([9])) == [81]


def test_another_version_is_told_by_name(machines, tmp_path, monkeypatch):
    monkeypatch.setattr(teams, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(ValueError, match=r"torch must be the same.*'1\.0' here and '2"):
        squares(Squares(tmp_path / "log"), 2)


class Elsewhere(Squares):
    """Work whose facts differ by process."""

    def facts(self) -> dict[str, str]:
        return {"images": str(os.getpid())}


class Without(Squares):
    """Work that needs a file that only the first process has."""

    def facts(self) -> dict[str, str]:
        if self.here == os.getpid():
            return {"images": ""}
        raise FileNotFoundError("data: /data/images is missing")


def test_other_data_and_missing_data_are_told(machines, tmp_path):
    with pytest.raises(ValueError, match="images must be the same on all machines"):
        squares(Elsewhere(tmp_path / "log"), 2)
    work = Without(tmp_path / "log")
    work.here = os.getpid()
    with pytest.raises(RuntimeError, match="could not start: FileNotFoundError: data: /data"):
        squares(work, 2)


def test_work_that_cannot_be_sent_and_workers_without_room(machines, tmp_path):
    work = Squares(tmp_path / "log")
    work.lock = threading.Lock()
    with pytest.raises(RuntimeError, match="the work cannot be sent"):
        squares(work, 2)
    with pytest.raises(RuntimeError, match="the cluster has no machine for a worker"):
        squares(Squares(tmp_path / "log"), 2, threads=64)


def test_threads_and_folder_of_a_worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    try:
        assert Worker().begin(Squares(tmp_path / "log"), teams.numerics(3)) == {
            "settings": "squares"
        }
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_killed_machine_is_made_up_for_by_the_others(machines, tmp_path):
    log, node = tmp_path / "log", machines.add_node(num_cpus=1)
    results = []
    with Ray(workers=3).team(Squares(log, slow=0.3), CPU) as team:
        for number, result in enumerate(team.each(range(30))):
            results.append(result)
            if number == 5:
                machines.remove_node(node, allow_graceful=False)
    assert results == [i * i for i in range(30)]
    done = [item for item, _ in lines(log)]
    assert set(done) == set(range(30))


# ---- reaching a cluster --------------------------------------------------------------------------


def test_an_address_that_does_not_answer_is_one_message():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{port} cannot be reached"):
        Ray(f"127.0.0.1:{port}")._connect(None)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        Ray("127.0.0.1:99999")._connect(None)
