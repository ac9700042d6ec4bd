"""A run that was stopped anywhere ends with the bits of one that was not."""

import json
import os
import random
import signal
import sys
import time

import pytest
import torch
from helpers import processes
from helpers.models import SMALL, small_model
from safetensors import safe_open
from safetensors.torch import save_file

from fastprompt import AdvPTTuner
from fastprompt._utils.files import _HEADER, read_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt.attacks import FeaturePGD
from fastprompt.cli.main import main
from fastprompt.data.dataset import ImageTensors
from fastprompt.methods.apt import APTTuner
from fastprompt.tuning.online_pgd import OnlinePGD

SHARD = 16  # images: four batches of four
TRAIN = 6 * 16
EPOCHS = 20
COMMAND = [
    *("tune", "advpt", "--device=cpu", "--data=patterns", "--shots=16", "--n_ctx=2"),
    *("--attack_batch=4", "--steps=15", f"--epochs={EPOCHS}", "--batch=8", "--lr=0.1"),
    *("--attacks=clean", "--eval_limit=6", "--sanity=off"),
]
DEADLINE = 120  # seconds until a run must have come to the point where it is killed


@pytest.fixture(autouse=True)
def _one_thread():
    """The bits depend on the number of threads: as many here as in the processes below."""
    torch.set_num_threads(1)


def prompts_of(folder, name="prompts"):
    return read_tensors(folder / f"{name}.safetensors", "prompts")[0]


def metrics_of(folder):
    """The metrics, but for the times."""
    rows = RunFolder(folder).read_metrics()
    assert len(rows) == (folder / "metrics.jsonl").read_text().count("\n")
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def banks_of(folder):
    return {f.name: read_tensors(f, "bank")[0] for f in (folder / "banks").glob("*.safetensors")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def assert_same_run(folder, whole):
    """Prompts, banks and metrics are those of the run ``whole``, and no shards are left."""
    for name in ("prompts", "best", "last"):
        assert equal(prompts_of(folder, name), prompts_of(whole, name))
    assert metrics_of(folder) == metrics_of(whole)
    found, wanted = banks_of(folder), banks_of(whole)
    assert found.keys() == wanted.keys()
    assert all(equal(found[name], wanted[name]) for name in wanted)
    assert list((folder / "banks").glob("*.parts")) == []


# ---- killed processes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model in a folder, as the command line takes it."""
    folder = tmp_path_factory.mktemp("model")
    card = {"model_cfg": SMALL, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(card))
    weights = {k: v.contiguous() for k, v in small_model().state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"--clip=local-dir:{folder}"


@pytest.fixture(scope="module")
def command(model):
    """The run's arguments."""
    return [*COMMAND, model]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    assert main([*command, f"--out={folder}"]) == 0
    assert [row["epoch"] for row in metrics_of(folder)] == list(range(1, EPOCHS + 1))
    return folder


def run_main(arguments, errors):
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = errors.open("w")
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def kill_when(arguments, reached, errors):
    """Start a run in a process of its own, and kill it as soon as ``reached()``."""
    run = processes.start(run_main, arguments, errors)
    try:
        end = time.monotonic() + DEADLINE
        while not reached():
            assert run.is_alive(), f"ended too early: {errors.read_text()}"
            assert time.monotonic() < end, "never came to the point where it is to be killed"
            time.sleep(0.002)
    finally:
        run.kill()
        run.join()
    assert run.exitcode == -signal.SIGKILL
    assert errors.read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_in_both_phases(command, whole, tmp_path):
    folder = tmp_path / "run"
    metrics, state = folder / "metrics.jsonl", folder / "state.safetensors"

    def shards():
        return list(folder.glob("banks/*.parts/*.safetensors"))

    # phase 1: the bank
    started = [*command, f"--out={folder}"]
    kill_when(started, lambda: len(shards()) >= 2, tmp_path / "errors")
    assert 2 <= len(shards()) < TRAIN // SHARD
    assert banks_of(folder) == {}
    assert not metrics.exists()

    # phase 2: the prompts
    def three_epochs():
        return state.exists() and metrics.read_bytes().count(b"\n") >= 3

    resumed = ["tune", "advpt", f"--resume={folder}"]
    kill_when(resumed, three_epochs, tmp_path / "errors")
    assert 2 <= int(read_tensors(state, "state")[1]["epoch"]) < EPOCHS
    assert len(banks_of(folder)) == 2
    assert not (folder / "prompts.safetensors").exists()

    assert main(resumed) == 0
    assert_same_run(folder, whole)


ONLINE = {
    "apt": ["--eps_min=1/255"],
    "ampt": ["--n_prompts=3", "--clean_share=0.25", "--load_balance=0.1"],
    "capt": ["--optimizer=adamw"],
    "nap": ["--accumulate=2"],
}
ONLINE_EPOCHS = 6
ONLINE_COMMAND = [
    *("--device=cpu", "--data=patterns", "--shots=2", "--n_ctx=2", "--steps=1", "--batch=2"),
    *(f"--epochs={ONLINE_EPOCHS}", "--lr=0.1", "--keep=best"),
    *("--attacks=clean", "--eval_limit=6", "--sanity=off"),
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("method", ONLINE)
def test_killed_within_an_epoch(model, tmp_path, method):
    """At a random place of a random epoch; the best prompts so far are part of what goes on."""
    arguments = ["tune", method, *ONLINE_COMMAND, *ONLINE[method], model]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main([*arguments, f"--out={whole}"]) == 0
    rows = RunFolder(whole).read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, ONLINE_EPOCHS + 1))
    scores = [row["val_robust"] for row in rows]
    best = 1 + scores.index(max(scores))
    assert equal(prompts_of(whole), prompts_of(whole, "best"))
    assert not equal(prompts_of(whole), prompts_of(whole, "last"))

    seed = f"{method}-0"
    draw = random.Random(seed)
    epoch, share = draw.randint(1, ONLINE_EPOCHS // 2), draw.random()
    pause = share * min(row["seconds"] for row in rows)
    print(f"seed {seed!r}: killed {pause:.3f} s behind epoch {epoch}; the best is {best}")
    state = folder / "state.safetensors"

    def within_an_epoch():
        # the header alone: the run may put another file in its place before the tensors are read
        if not state.exists():
            return False
        with safe_open(state, "pt") as file:
            header = json.loads(file.metadata()[_HEADER])
        if int(header["epoch"]) < epoch:
            return False
        time.sleep(pause)
        return True

    kill_when([*arguments, f"--out={folder}"], within_an_epoch, tmp_path / "errors")
    assert epoch <= int(read_tensors(state, "state")[1]["epoch"]) < ONLINE_EPOCHS
    assert not (folder / "prompts.safetensors").exists()
    assert main(["tune", method, f"--resume={folder}"]) == 0
    assert_same_run(folder, whole)
    results = [json.loads((path / "result.json").read_text())["rows"] for path in (whole, folder)]
    assert [r["correct"] for r in results[0]] == [r["correct"] for r in results[1]]


# ---- stopped at each point -------------------------------------------------------------------


class Stopped(BaseException):
    """As a kill, this is caught by nothing."""


def data(seed, n):
    gen = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 48, 48), generator=gen, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % 3)


TRAIN_SET, VAL_SET = data(1, 10), data(2, 4)


def tuner(clip, **changes):
    settings = {"epochs": 4, "batch": 4, "n_ctx": 2, "steps": 2, "attack_batch": 1, "lr": 0.1}
    return AdvPTTuner(clip, ["cat", "dog", "cow"], settings | changes)


def fit(clip, folder, resume=False):
    return tuner(clip).fit(TRAIN_SET, VAL_SET, folder, resume=resume)


@pytest.fixture(scope="module")
def undisturbed(small_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    torch.set_num_threads(1)
    fit(small_clip, folder)
    return folder


def stop_in(patch, owner, name, turn, when):
    """Stop at the ``turn``-th call (from 1) of a method: before or after its work."""
    original = getattr(owner, name)
    turns = []

    def stopping(self, *arguments, **options):
        turns.append(1)
        if len(turns) == turn and when == "before":
            raise Stopped
        result = original(self, *arguments, **options)
        if len(turns) == turn and when == "after":
            raise Stopped
        return result

    patch.setattr(owner, name, stopping)


def stop_and_resume(clip, folder, owner, name, turn, when, resume=False, fit=fit):
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, owner, name, turn, when)
        with pytest.raises(Stopped):
            fit(clip, folder, resume=resume)


EPOCH_BOUNDARIES = [
    (name, epoch, when)
    for name in ("append_metrics", "write_state")
    for epoch in (1, 2, 3, 4)
    for when in ("before", "after")
]


@pytest.mark.parametrize(("name", "epoch", "when"), EPOCH_BOUNDARIES)
def test_stopped_at_the_end_of_an_epoch(small_clip, undisturbed, tmp_path, name, epoch, when):
    stop_and_resume(small_clip, tmp_path, RunFolder, name, epoch, when)
    assert not (tmp_path / "prompts.safetensors").exists()
    fit(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8, 12])
def test_stopped_within_an_epoch(small_clip, undisturbed, tmp_path, step):
    stop_and_resume(small_clip, tmp_path, AdvPTTuner, "loss", step, "after")
    fit(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_stopped_in_the_middle_of_a_line_of_metrics(small_clip, undisturbed, tmp_path):
    stop_and_resume(small_clip, tmp_path, RunFolder, "write_state", 3, "before")
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    fit(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_stopped_again_and_again(small_clip, undisturbed, tmp_path):
    for _ in range(3):  # each time one epoch more is kept
        stop_and_resume(small_clip, tmp_path, RunFolder, "append_metrics", 2, "after", resume=True)
    fit(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_before_or_after_the_prompts_are_written(small_clip, undisturbed, tmp_path, when):
    stop_and_resume(small_clip, tmp_path, RunFolder, "write_prompts", 1, when)
    fit(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("turn", range(1, 10 + 4 + 1))
def test_stopped_at_each_image_of_the_banks(small_clip, undisturbed, tmp_path, monkeypatch, turn):
    stop_and_resume(small_clip, tmp_path, FeaturePGD, "run", turn, "after")
    left = []
    run_attack = FeaturePGD.run
    monkeypatch.setattr(FeaturePGD, "run", lambda *a, **k: left.append(1) or run_attack(*a, **k))
    fit(small_clip, tmp_path, resume=True)
    # whole shards of four are kept, and each bank begins a new one
    kept = (turn - 1) // 4 * 4 if turn <= 10 else 10
    assert len(left) == 14 - kept
    assert_same_run(tmp_path, undisturbed)


def test_a_run_without_a_folder_ends_with_the_same_prompts(small_clip, undisturbed):
    prompts = fit(small_clip, None).prompts.state_dict()
    assert equal(prompts, prompts_of(undisturbed))


def test_the_optimizers_memory_matters_to_the_bits(small_clip, undisturbed, tmp_path):
    """Without its momentum a resumed run would differ: the tests above can tell."""
    stop_and_resume(small_clip, tmp_path, RunFolder, "write_state", 3, "after")
    run = RunFolder(tmp_path)
    key = run.read_config()["key"]
    tensors, epoch = run.read_state(key)
    momentum = [name for name in tensors if name.startswith("optimizer/")]
    assert momentum
    for name in momentum:
        tensors[name] = torch.zeros_like(tensors[name])
    run.write_state(tensors, epoch, key)
    fit(small_clip, tmp_path, resume=True)
    assert not equal(prompts_of(tmp_path), prompts_of(undisturbed))


@pytest.mark.parametrize("other", [{"lr": 0.2}, {"epochs": 5}, {"eps": "4/255"}, {"seed": 1}])
def test_other_settings_are_another_run(small_clip, undisturbed, other):
    before = {p: p.read_bytes() for p in undisturbed.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=r"^resume.*settings.* data"):
        tuner(small_clip, **other).fit(TRAIN_SET, VAL_SET, undisturbed, resume=True)
    assert before == {p: p.read_bytes() for p in undisturbed.iterdir() if p.is_file()}


def test_other_data_is_another_run(small_clip, undisturbed):
    with pytest.raises(ValueError, match=r"^resume.*settings.* data"):
        tuner(small_clip).fit(data(3, 10), VAL_SET, undisturbed, resume=True)


# ---- methods that attack in every step -------------------------------------------------------


def fit_online(clip, folder, resume=False):
    """Ten images are batches of 4, 4 and 2, two optimizer steps in each of four epochs."""
    settings = {"epochs": 4, "batch": 4, "accumulate": 2, "n_ctx": 2, "steps": 2, "lr": 0.5}
    settings |= {"keep": "best", "patience": 3, "eps_min": "1/255", "eps": "8/255"}
    tuner = APTTuner(clip, ["cat", "dog", "cow"], settings)
    return tuner.fit(TRAIN_SET, VAL_SET, folder, resume=resume, progress=False)


@pytest.fixture(scope="module")
def online(small_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "online"
    torch.set_num_threads(1)
    fit_online(small_clip, folder)
    return folder


ONLINE_STOPS = [
    *((RunFolder, *point) for point in EPOCH_BOUNDARIES),
    # in the middle of a step: its images are made, its loss is known, its gradients are there
    *((OnlinePGD, "__call__", turn, "after") for turn in (1, 2, 4, 5, 7, 11, 15)),
    *((APTTuner, "loss", turn, when) for turn in (2, 5, 12) for when in ("before", "after")),
    *((torch.optim.SGD, "step", turn, when) for turn in (1, 4, 8) for when in ("before", "after")),
    *((APTTuner, "validate", turn, when) for turn in (1, 3, 4) for when in ("before", "after")),
    *(
        (RunFolder, "write_prompts", turn, when)
        for turn in (1, 2, 3)
        for when in ("before", "after")
    ),
]


@pytest.mark.parametrize(("owner", "name", "turn", "when"), ONLINE_STOPS)
def test_stopped_at_each_point_of_a_step(small_clip, online, tmp_path, owner, name, turn, when):
    stop_and_resume(small_clip, tmp_path, owner, name, turn, when, fit=fit_online)
    resumed = fit_online(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, online)
    assert equal(resumed.prompts.state_dict(), prompts_of(online))


def test_stopped_in_every_epoch_of_a_method_that_attacks(small_clip, online, tmp_path):
    for _ in range(3):  # each time one epoch more is kept
        stop_and_resume(
            *(small_clip, tmp_path, RunFolder, "append_metrics", 2, "after"),
            resume=True,
            fit=fit_online,
        )
    fit_online(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, online)


def test_the_best_prompts_so_far_matter_to_what_is_kept(small_clip, online, tmp_path):
    """Without them a resumed run would keep others: the tests above can tell."""
    rows = metrics_of(online)
    scores = [row["val_robust"] for row in rows]
    assert scores.index(max(scores)) + 1 < len(rows)
    stop_and_resume(small_clip, tmp_path, RunFolder, "write_state", 3, "after", fit=fit_online)
    run = RunFolder(tmp_path)
    key = run.read_config()["key"]
    tensors, epoch = run.read_state(key)
    best = [name for name in tensors if name.startswith("best/")]
    assert best
    for name in best:
        tensors[name] = torch.zeros_like(tensors[name])
    run.write_state(tensors, epoch, key)
    fit_online(small_clip, tmp_path, resume=True)
    assert not equal(prompts_of(tmp_path), prompts_of(online))
    assert equal(prompts_of(tmp_path, "last"), prompts_of(online, "last"))
