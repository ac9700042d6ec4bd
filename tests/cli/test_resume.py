"""A run that was stopped at a known point ends with the bits of one that was not.

`tests/hostile/test_kills.py` kills processes at any point.
"""

import pytest
import torch

from fastprompt import AdvPTTuner
from fastprompt._utils.files import read_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt.attacks import FeaturePGD
from fastprompt.data.dataset import ImageTensors
from fastprompt.methods.apt import APTTuner
from fastprompt.tuning.online_pgd import OnlinePGD


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
    for epoch in (1, 4)
    for when in ("before", "after")
]


@pytest.mark.parametrize(("name", "epoch", "when"), EPOCH_BOUNDARIES)
def test_stopped_at_the_end_of_an_epoch(small_clip, undisturbed, tmp_path, name, epoch, when):
    stop_and_resume(small_clip, tmp_path, RunFolder, name, epoch, when)
    assert not (tmp_path / "prompts.safetensors").exists()
    fit(small_clip, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("step", [1, 8, 12])
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
    *((OnlinePGD, "__call__", turn, "after") for turn in (1, 7, 15)),
    *((APTTuner, "loss", turn, "after") for turn in (2, 12)),
    *((torch.optim.SGD, "step", 4, when) for when in ("before", "after")),
    *((APTTuner, "validate", turn, "after") for turn in (1, 4)),
    *((RunFolder, "write_prompts", turn, "before") for turn in (1, 2, 3)),
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
