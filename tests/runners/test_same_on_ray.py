"""On a cluster of two machines, results are those of one process, but for times."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import picture_sources
from helpers.kills import contents, timeless
from helpers.models import small_model
from helpers.ray_cluster import cluster
from torchvision.transforms.functional import to_pil_image

from fastprompt import AdvPTTuner, evaluate, load_clip, load_data, predict, protocols
from fastprompt.clip import bundled
from fastprompt.data.dataset import ImageTensors
from fastprompt.evaluation import model_run
from fastprompt.inference.job import Job
from fastprompt.inference.sources import find_pictures
from fastprompt.protocols import make_plan
from fastprompt.runners import Ray

pytest.importorskip("ray", reason="needs Ray, which the extra ray brings")
pytestmark = pytest.mark.slow
NAMES = ["cat", "dog", "bird"]
CUT = Path(__file__).parents[1] / "data" / "coop"
PARTS = "pgd-2,apgd-ce-2,apgd-t-2,square-10,feature-pgd-2,pgd-2@other"


@pytest.fixture(scope="module")
def machines():
    with cluster(2) as found:
        yield found


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(model_run, "WINDOW", 2)
    yield
    torch.set_num_threads(before)


def pictures(count=24):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=draw)


def classifiers():
    """Two classifiers with one image encoder, which share the images of the feature attack."""
    clip = load_clip(small_model())
    return {
        "a": clip.zero_shot(NAMES, ["a photo of a {}."]),
        "b": clip.zero_shot(NAMES, ["a drawing of a {}."]),
    }


def images(count=24):
    """Images of which most are classified correctly."""
    pixels = pictures(count)
    with torch.no_grad():
        labels = classifiers()["a"](pixels.float() / 255).argmax(dim=1)
    labels[::7] = (labels[::7] + 1) % 3
    return ImageTensors(pixels, labels)


def judge(out, attacks=PARTS, count=24, eps="2/255", **options):
    models = classifiers()
    return evaluate(
        models,
        images(count),
        attacks,
        eps,
        batch=3,
        surrogates={"other": load_clip(small_model(seed=1)).zero_shot(NAMES, ["{}"])},
        progress=False,
        out=out,
        # other processes see a processor's bfloat16 units, which the tests hide from this one
        **{"search_precision": "own", **options},
    )


def result_of(folder):
    return timeless(json.loads((folder / "result.json").read_text()))


# ---- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("precision", ["own", "bf16"])
def test_an_evaluation(machines, tmp_path, workers, precision):
    options = {"search_precision": precision, "count": 24 if workers == 2 else 9}
    judge(tmp_path / "one", **options)
    judge(tmp_path / "many", runner=Ray(workers=workers), **options)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_autoattack(machines, tmp_path):
    options = {"attacks": "autoattack", "count": 4, "eps": "1/255", "sanity": "off"}
    judge(tmp_path / "one", **options)
    judge(tmp_path / "many", runner="ray", **options)
    assert result_of(tmp_path / "many") == result_of(tmp_path / "one")


def test_the_bank_and_the_tuning(machines, tmp_path):
    data = images(40)

    def fit(folder, **options):
        settings = {"steps": 2, "attack_batch": 2, "epochs": 1, "n_ctx": 2, "warmup_epochs": 0}
        tuner = AdvPTTuner(load_clip(small_model()), NAMES, **settings)
        tuner.fit(data, data, folder, progress=False, **options)
        return contents(folder)

    one = fit(tmp_path / "one")
    assert fit(tmp_path / "many", runner="ray") == one


def test_predictions(machines, tmp_path):
    folder, model = tmp_path / "pictures", classifiers()["a"]
    folder.mkdir()
    for i, pixels in enumerate(pictures(23)):
        to_pil_image(pixels).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes(b"no picture")
    one, many = (predict(model, folder, batch=2, runner=r) for r in (None, "ray"))
    assert torch.equal(many.probabilities, one.probabilities)
    assert (many.paths, many.unread) == (one.paths, one.unread)
    how = {"top": 2, "batch": 2, "workers": 1, "temperature": 1.0, "run": "r"}
    for name, more in (("one", {}), ("many", {"runner": Ray()})):
        out = tmp_path / name / "found.csv"
        job = Job(model.for_inference(), find_pictures([folder]), out, None, **how, **more)
        job.write(progress=False)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_pictures_in_tar_files(machines, tmp_path):
    rows = picture_sources.write(tmp_path / "pictures", {"": 4})
    files = picture_sources.samples_of(tmp_path / "pictures", rows, "txt")
    shard = picture_sources.write_tar(tmp_path / "shards" / "a.tar", files)
    data = load_data(tmp_path / "shards", image_size=48)
    model = load_clip(small_model()).zero_shot(data.classnames, data.templates)

    def judged(name, **more):
        options = {"batch": 2, "sanity": "off", "search_precision": "own", "progress": False}
        evaluate(model, data.test, "pgd-2", "2/255", out=tmp_path / name, **options, **more)
        return contents(tmp_path / name)

    assert judged("many", runner="ray") == judged("one")
    os.utime(shard, (0, 0))
    words = r"could not start: ValueError: .*a\.tar has changed since it was listed"
    with pytest.raises(RuntimeError, match=words):
        judged("copied", runner=Ray(workers=1))


def test_a_protocol(machines, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())
    little = {"epochs": 1, "steps": 1, "n_ctx": 2, "lr": 0.5, "warmup_epochs": 0}
    options = {"eps": "8/255", "attacks": "pgd-1", "limit": 8, "sanity": "off", "seeds": (1, 2)}
    # which searches in the models' own precision: workers see a processor's bfloat16 units, which
    # the tests hide from this process
    options["scoring"] = "published"
    plan = make_plan(
        *("few-shot", "zero-shot,coop,apt", "coop:Caltech101"),
        root=CUT,
        shots=(1,),
        settings={"all": {**little, "precision": "fp32"}},
        **options,
    )
    protocols.execute(plan, tmp_path / "one", progress=False)
    protocols.execute(plan, tmp_path / "many", progress=False, runner="ray")
    one, many = (
        {k: v for k, v in contents(tmp_path / name).items() if not k.endswith(".lock")}
        for name in ("one", "many")
    )
    assert many == one


# ---- kills ---------------------------------------------------------------------------------------


def when(folder, lines, act):
    """Act in a thread once the record has so many lines."""

    def watch():
        path = folder / "progress.jsonl"
        end = time.monotonic() + 200
        while time.monotonic() < end:
            if path.exists() and path.read_bytes().count(b"\n") >= lines:
                return act()
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_killed_machine_in_an_evaluation(machines, tmp_path):
    judge(tmp_path / "one", sanity="off")
    node = machines.add_node(num_cpus=1)
    act = when(tmp_path / "many", 6, lambda: machines.remove_node(node, allow_graceful=False))
    judge(tmp_path / "many", sanity="off", runner=Ray(workers=3))
    act.join()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


DRIVER = """
import sys, torch
sys.path[:0] = {path!r}
torch.set_num_threads(1)
from pathlib import Path
from fastprompt.evaluation import model_run
from fastprompt.runners import Ray
model_run.WINDOW = 2
from test_same_on_ray import judge
judge(Path({folder!r}), sanity="off", runner=Ray({address!r}))
"""


def test_a_killed_driver_goes_on_with_other_workers(machines, tmp_path):
    judge(tmp_path / "one", sanity="off")
    folder = tmp_path / "many"
    code = DRIVER.format(path=sys.path, folder=str(folder), address=machines.address)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    kill = when(folder, 8, lambda: os.kill(process.pid, signal.SIGKILL))
    _, said = process.communicate(timeout=250)
    kill.join()
    assert process.returncode == -signal.SIGKILL, said.decode()
    before = (folder / "progress.jsonl").read_bytes().splitlines()
    assert not (folder / "result.json").exists()
    shutil.copytree(folder, tmp_path / "alone")
    judge(folder, sanity="off", resume=True, runner=Ray(workers=1))
    judge(tmp_path / "alone", sanity="off", resume=True)
    wanted = contents(tmp_path / "one")
    assert contents(folder) == contents(tmp_path / "alone") == wanted
    assert (folder / "progress.jsonl").read_bytes().splitlines()[: len(before) - 1] == before[:-1]
