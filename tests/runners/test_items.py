"""Items are handed out once each, come back if their worker is lost, and leave in order."""

import random
import sys

import pytest
import torch
from helpers.processes import python

from fastprompt.runners import HERE, Ray, runner_of
from fastprompt.runners.items import Items


@pytest.mark.parametrize("seed", range(20))
def test_every_item_has_one_result_in_order(seed):
    draw = random.Random(seed)
    count, ahead = draw.randint(0, 20), draw.randint(1, 6)
    queue, held, left = Items(range(count), ahead), [], []
    while not queue.over:
        left += queue.leaving()
        lent = queue.take()
        if lent is not None:
            assert lent.number - len(left) < ahead
            held.append(lent)
        if held and (lent is None or draw.random() < 0.5):
            some = held.pop(draw.randrange(len(held)))
            if draw.random() < 0.3:
                queue.come_back(some)
            else:
                queue.finish(some, 10 * some.item)
    assert left == [10 * i for i in range(count)]


def test_here_computes_when_a_result_is_asked_for():
    asked = []

    class Work:
        def __call__(self, item):
            asked.append(item)
            return -item

    with HERE.team(Work(), torch.device("cpu")) as team:
        results = team.each(range(3))
        assert next(results) == 0
        assert asked == [0]
        assert [*results] == [-1, -2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ray("nonsense"), "address must be HOST:PORT"),
        (lambda: Ray("ray://host:10001"), "address must be HOST:PORT"),
        (lambda: Ray(threads=0), "threads must be"),
        (lambda: Ray(workers=-1), "workers must be"),
        (lambda: runner_of("dask"), "runner must be 'ray'"),
        (lambda: runner_of(3), "runner must be 'ray'"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'fastprompt\[ray\]'"):
        runner_of("ray")


def test_nothing_imports_ray_unless_it_runs_there():
    code = (
        "import fastprompt.cli.evaluate, fastprompt.cli.protocol, fastprompt.cli.predict, sys\n"
        "from fastprompt.runners import runner_of, Ray; runner_of(None); Ray()\n"
        "print('ray' in sys.modules)"
    )
    assert python(code) == "False"
