"""The list of what needs a GPU: every task by a name of its own, with or without a result."""

import json

import pytest
import torch

from benchmarks.gpu import smoke
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.task import code_digest, finished
from benchmarks.gpu.tasks import TASKS


def test_the_list_has_every_task(capsys):
    assert main() == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [task.name for task in TASKS]
    assert len(set(listed)) == len(listed)
    with pytest.raises(SystemExit, match="'none'"):
        main(only=["none"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run them")
def test_without_a_gpu_nothing_is_run(capsys):
    assert main(pending=True) == 0
    assert "no GPU here" in capsys.readouterr().out


def test_a_result_belongs_to_its_code(tmp_path):
    task, digest = TASKS[0], code_digest()
    path = tmp_path / "some-card" / f"gpu-{task.name}.json"
    path.parent.mkdir()
    for found, is_one in (
        ({"code": digest}, True),
        ({"code": "another"}, False),
        ({"code": digest, "error": "it broke"}, False),
    ):
        path.write_text(json.dumps(found))
        assert (finished(task, digest, tmp_path) == path) is is_one


def test_the_first_look_runs_the_methods_that_attack_a_batch():
    """The others have no attack that could be captured, which is an error there."""
    assert set(smoke.METHODS) == {"apt", "ampt", "capt", "nap"}
