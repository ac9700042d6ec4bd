"""How a team hands out its items, on workers in this process: no Ray is installed or started."""

import contextlib
import io
import pickle

import pytest
import torch
from helpers.fake_ray import installed
from helpers.models import small_model
from helpers.picture_sources import write
from helpers.ray_cluster import Squares

from fastprompt import AdvPTTuner, APTTuner, evaluate, load_clip, predict
from fastprompt._utils.progress import Progress
from fastprompt.cli import predict as command
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.data.dataset import ImageTensors
from fastprompt.evaluation import model_run
from fastprompt.runners import Ray

CPU = torch.device("cpu")
NAMES = ["cat", "dog", "bird"]


class Bar:
    """What a bar is told about workers."""

    def __init__(self):
        self.told = []

    def workers(self, number):
        self.told.append(number)


def squares(work, count, bar=None, **options):
    with Ray(**options).team(work, CPU) as team:
        return [*team.each(range(count), bar)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_work_is_sent_once_and_begun_once_by_each_worker(monkeypatch, tmp_path, workers):
    ray, bar = installed(monkeypatch, workers=3), Bar()
    assert squares(Squares(tmp_path / "log"), 9, bar, workers=workers) == [i * i for i in range(9)]
    assert ray.put_ == 1
    assert ray.actors == workers
    assert ray.calls.count("hello") == ray.calls.count("begin") == workers
    assert ray.calls.count("do") == 9
    assert ray.needs["num_cpus"] == 1
    assert not ray.alive
    # none has begun at first, all have at last, and the number never falls
    assert bar.told == sorted(bar.told)
    assert (bar.told[0], bar.told[-1]) == (0, workers)


def test_several_calls_of_a_team_send_the_work_once(monkeypatch, tmp_path):
    ray = installed(monkeypatch)
    with Ray().team(Squares(tmp_path / "log"), CPU) as team:
        for _ in range(3):
            assert [*team.each(range(4))] == [0, 1, 4, 9]
    assert ray.put_ == 1
    assert ray.actors == ray.calls.count("begin") == 2


def test_without_items_there_are_no_workers(monkeypatch, tmp_path):
    ray = installed(monkeypatch)
    assert squares(Squares(tmp_path / "log"), 0) == []
    assert not ray.put_
    assert not ray.actors


def test_the_item_of_a_lost_worker_is_computed_by_another(monkeypatch, tmp_path):
    ray, bar, log = installed(monkeypatch, lost=(0, 3, 4)), Bar(), tmp_path / "log"
    assert squares(Squares(log), 6, bar) == [i * i for i in range(6)]
    assert sorted(int(line.split()[0]) for line in log.read_text().splitlines()) == [*range(6)]
    assert ray.put_ == 1
    assert ray.actors == ray.calls.count("hello") == 2 + 3
    assert ray.calls.count("do") == 6 + 3
    assert not ray.alive
    assert set(bar.told) == {0, 1, 2}
    assert bar.told != sorted(bar.told)  # it falls when a worker is lost


def test_an_item_that_ends_its_workers_ends_the_work(monkeypatch, tmp_path):
    ray = installed(monkeypatch, workers=1, lost=(1, 2, 3, 4))
    with pytest.raises(RuntimeError, match="the square of 1 ended 4 workers; of the last one: "):
        squares(Squares(tmp_path / "log"), 3)
    assert ray.calls.count("do") == 5
    assert not ray.alive


# ---- what is sent for each item ------------------------------------------------------------------


@pytest.fixture
def sizes(monkeypatch):
    """Bytes of each item that was handed out; the models have more than a million."""
    ray, found = installed(monkeypatch), []
    start = ray._method

    def method(call):
        def remote(*given):
            if call.__name__ == "do":
                found.append(len(pickle.dumps(given)))
            return start(call)(*given)

        return remote

    monkeypatch.setattr(ray, "_method", method)
    monkeypatch.setattr(model_run, "WINDOW", 2)
    yield found
    assert ray.put_ == 1
    assert len(found) > 2
    assert max(found) < 3000


def images(count=24):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=draw)
    return ImageTensors(pixels, torch.arange(count) % 3)


def test_an_evaluation_sends_no_model_with_its_items(sizes):
    model = load_clip(small_model()).zero_shot(NAMES, ["a photo of a {}."])
    options = {"batch": 3, "sanity": "off", "runner": "ray", "progress": False}
    evaluate(model, images(), "pgd-1", "2/255", **options)


def test_a_bank_sends_no_model_with_its_items(sizes, tmp_path):
    settings = {"steps": 1, "attack_batch": 2, "epochs": 1, "n_ctx": 2, "warmup_epochs": 0}
    tuner = AdvPTTuner(load_clip(small_model()), NAMES, **settings)
    tuner.fit(images(), None, tmp_path / "run", progress=False, runner="ray")


def test_predictions_send_no_model_with_their_items(sizes, tmp_path):
    write(tmp_path, {"": 10})
    model = load_clip(small_model()).zero_shot(NAMES, ["a photo of a {}."])
    predict(model, tmp_path, batch=2, runner="ray")


# ---- predict without --out -----------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("where", [[], ["--ray"]])
def test_the_bar_of_predictions_that_are_printed(monkeypatch, tmp_path, terminal, where):
    bars = []

    class Watched(Progress):
        def __init__(self, *arguments, show):
            super().__init__(*arguments, show=show)
            self.shown, self.told = show, []
            bars.append(self)

        def workers(self, number):
            super().workers(number)
            self.told.append(number)

    installed(monkeypatch)
    monkeypatch.setattr(command, "Progress", Watched)
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    run = APTTuner(load_clip("tiny-shapes"), NAMES, n_ctx=1).save(tmp_path / "run")
    write(tmp_path / "pictures", {"": 3})
    out = Terminal() if terminal else io.StringIO()
    line = ["predict", str(run), str(tmp_path / "pictures"), "--batch=1", "--device=cpu", *where]
    with contextlib.redirect_stdout(out):
        assert main(line) == 0
    assert len(out.getvalue().splitlines()) == 9
    (bar,) = bars
    assert bar.shown == (not terminal)  # there, the lines themselves show how far it is
    assert bar.total == bar.done == 9
    assert bar.told[-1:] == ([2] if where else [])
