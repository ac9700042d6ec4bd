"""The loop that all methods share: steps, rates, which prompts are kept, when it stops."""

import math
import re

import pytest
import torch
from helpers.models import small_model
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastprompt import load_clip
from fastprompt._utils.files import read_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt.data import ImageTensors
from fastprompt.methods.apt import APTConfig, APTTuner
from fastprompt.tuning.optimizers import learning_rate
from fastprompt.tuning.tuner import Tuner

NAMES = ["cat", "dog", "red fish"]
EXACT = 1e-10
FAST = {"epochs": 4, "batch": 4, "n_ctx": 2, "lr": 0.5, "warmup_epochs": 0}


def data(n: int = 10, seed: int = 0) -> ImageTensors:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % len(NAMES))


class Scripted(APTTuner):
    """Pulls the context's mean to numbers that hang on the rows; what validation says is given."""

    scores = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

    def prepare(self, train, val, out, progress):
        self.judged, self.seen = val is not None, []
        return len(train)

    def batches(self, order, epoch):
        self.epoch = epoch
        yield from Tuner.batches(self, order, epoch)

    def loss(self, batch):
        self.seen.append((self.epoch, batch.tolist()))
        losses = (self.prompts.tokens.mean() - 0.1 * batch) ** 2
        self.log(len(batch), row=batch.float().mean(), squared=losses.mean())
        return losses.mean()

    def validate(self):
        return {"val_robust": self.scores[self.epoch]} if self.judged else {}


def scripted(clip, scores=(), **changes) -> Scripted:
    tuner = Scripted(clip, NAMES, FAST | changes)
    tuner.scores = scores or tuner.scores
    return tuner


def fit(tuner, folder=None, val=True, n=10, **options):
    return tuner.fit(data(n), data(3, 1) if val else None, folder, progress=False, **options)


def stored(folder, name: str) -> dict:
    return read_tensors(folder / f"{name}.safetensors", "prompts")[0]


def tokens_of(folder, name: str = "prompts") -> torch.Tensor:
    return stored(folder, name)["tokens"]


def rows_of(folder) -> list[dict]:
    rows = RunFolder(folder).read_metrics()
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture
def by_epoch(monkeypatch):
    """The prompts after each epoch of each run, by epoch from 1."""
    kept = {}
    finish = RunFolder.append_metrics

    def keeping(self, row):
        kept[row["epoch"]] = running[-1].prompts.tokens.detach().clone()
        finish(self, row)

    running = []
    prepare = Scripted.prepare
    monkeypatch.setattr(
        Scripted, "prepare", lambda self, *a: running.append(self) or prepare(self, *a)
    )
    monkeypatch.setattr(RunFolder, "append_metrics", keeping)
    return kept


# ---- steps ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def double():
    return load_clip(small_model().double())


def steps_of(tuner, train) -> list[torch.Tensor]:
    """Fit; the gradient that each optimizer step took."""
    gradients = []

    def look(optimizer, *_):
        (group,) = optimizer.param_groups
        gradients.append(torch.cat([p.grad.flatten() for p in group["params"]]).clone())

    handle = register_optimizer_step_pre_hook(look)
    try:
        tuner.fit(train, progress=False)
    finally:
        handle.remove()
    return gradients


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize(("n", "steps"), [(12, 1), (24, 2), (18, 2), (31, 3)])
def test_accumulated_batches_are_one_large_batch(double, n, steps, augment):
    """31 images are groups of 12, 12 and 7, the last of batches of 4 and 3."""
    options = FAST | {"epochs": 1, "steps": 1, "augment": augment}
    whole = APTTuner(double, NAMES, options, batch=12)
    parts = APTTuner(double, NAMES, options, batch=4, accumulate=3)
    start = whole.prompts.tokens.detach().clone()
    wanted, got = (steps_of(tuner, data(n)) for tuner in (whole, parts))
    assert len(wanted) == len(got) == steps
    for ours, theirs in zip(got, wanted, strict=True):
        assert theirs.norm() > 1e-6
        assert (ours - theirs).norm() <= EXACT * theirs.norm()
    moved = (whole.prompts.tokens - start).norm()
    assert moved > 1e-6
    assert (parts.prompts.tokens - whole.prompts.tokens).norm() <= EXACT * moved


def test_the_gradients_of_two_steps_do_not_add_up(small_clip):
    tuner = scripted(small_clip, epochs=1, batch=5, momentum=0.0, weight_decay=0.0)
    first, second = steps_of(tuner, data(10))
    (_, rows), (_, later) = tuner.seen
    mean = scripted(small_clip).prompts.tokens.mean().item()
    for gradient, own in ((first, rows), (second, later)):
        # d/dt of the mean over rows of (mean(t) - row / 10)^2, for each of the entries of t
        slope = 2 * (mean - 0.1 * sum(own) / len(own))
        assert gradient.sum().item() == pytest.approx(slope, rel=1e-4)
        mean -= 0.5 * slope / gradient.numel()


def test_each_epoch_sees_every_image_once_in_an_order_of_its_own(small_clip):
    tuner = fit(scripted(small_clip))
    orders = {}
    for epoch, rows in tuner.seen:
        orders.setdefault(epoch, []).extend(rows)
    assert sorted(orders) == [0, 1, 2, 3]
    assert all(sorted(order) == list(range(10)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert [len(rows) for _, rows in tuner.seen[:3]] == [4, 4, 2]
    assert fit(scripted(small_clip)).seen == tuner.seen
    assert fit(scripted(small_clip, batch=7)).seen[0][1] == orders[0][:7]
    assert fit(scripted(small_clip, seed=1)).seen != tuner.seen


@pytest.mark.parametrize(
    ("batch", "sizes"), [(4, [4, 4]), (5, [5, 5]), (7, [7]), (10, [10]), (11, [10])]
)
def test_the_last_partial_batch_may_be_dropped(small_clip, tmp_path, batch, sizes):
    """But not the only one, as Dassl's loader does it."""
    whole = fit(scripted(small_clip, batch=batch, epochs=2))
    tuner = fit(scripted(small_clip, batch=batch, epochs=2, drop_last=True), tmp_path)
    assert [len(rows) for epoch, rows in tuner.seen if epoch == 0] == sizes
    for epoch, row in enumerate(rows_of(tmp_path)):
        own = [rows for e, rows in tuner.seen if e == epoch]
        assert own == [rows for e, rows in whole.seen if e == epoch][: len(sizes)]
        used = [row for rows in own for row in rows]
        assert row["row"] == pytest.approx(sum(used) / len(used))  # the means are of these
        assert row["squared"] == pytest.approx(row["loss"], rel=1e-6)


# ---- rates ----------------------------------------------------------------------------------


def test_warm_up_and_cosine_are_their_formulas():
    config = APTConfig(epochs=8, lr=0.3, warmup_epochs=2, warmup_lr=1e-4)
    rates = [learning_rate(config, epoch) for epoch in range(8)]
    assert rates[:2] == [1e-4, 1e-4]
    assert rates[2] == 0.3  # the cosine begins after the warm-up, and is cut off at the end
    for epoch in range(2, 8):
        angle = math.pi * (epoch - 2) / 8
        assert rates[epoch] == pytest.approx(0.15 * (1 + math.cos(angle)), rel=1e-12)
    assert learning_rate(APTConfig(epochs=8, lr=0.3, warmup_epochs=0), 0) == 0.3
    assert learning_rate(APTConfig(epochs=1, warmup_epochs=5, warmup_lr=0.0), 0) == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizer_takes_the_rate_of_its_epoch(small_clip, tmp_path, optimizer):
    seen, rates = [], []

    def look(optimizer, *_):
        (group,) = optimizer.param_groups
        seen.append((type(optimizer).__name__, group))
        rates.append(group["lr"])

    handle = register_optimizer_step_pre_hook(look)
    settings = {"warmup_epochs": 1, "optimizer": optimizer, "weight_decay": 0.25, "momentum": 0.75}
    try:
        fit(scripted(small_clip, **settings), tmp_path)
    finally:
        handle.remove()
    wanted = [1e-5] + [0.25 * (1 + math.cos(math.pi * (epoch - 1) / 4)) for epoch in (1, 2, 3)]
    assert rates == pytest.approx([rate for rate in wanted for _ in range(3)])
    assert [row["lr"] for row in rows_of(tmp_path)] == pytest.approx(wanted)
    name, group = seen[0]
    assert (name, group["weight_decay"]) == ({"sgd": "SGD", "adamw": "AdamW"}[optimizer], 0.25)
    assert group.get("momentum", 0.75) == 0.75


# ---- what is written down -------------------------------------------------------------------


def test_means_are_weighted_by_the_sizes_of_the_batches(small_clip, tmp_path):
    """Ten images are batches of 4, 4 and 2: a mean of the batches' means is another."""
    tuner = fit(scripted(small_clip), tmp_path)
    first = [rows for epoch, rows in tuner.seen if epoch == 0]
    assert sum(sum(rows) / len(rows) for rows in first) / 3 != pytest.approx(4.5)
    for row in rows_of(tmp_path):
        assert row["row"] == pytest.approx(4.5)  # and nothing is left of the epoch before
        assert row["squared"] == pytest.approx(row["loss"], rel=1e-6)


def test_rows_hold_losses_terms_and_validation(small_clip, tmp_path):
    fit(scripted(small_clip), tmp_path)
    rows = RunFolder(tmp_path).read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["val_robust"] for row in rows] == [0.1, 0.2, 0.3, 0.4]
    wanted = ["epoch", "loss", "lr", "row", "squared", "val_robust", "tuning_seconds", "seconds"]
    for row in rows:
        assert sorted(row) == sorted(wanted)
        assert 0 <= row["tuning_seconds"] <= row["seconds"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    fit(scripted(small_clip), tmp_path / "alone", val=False)
    assert "val_robust" not in RunFolder(tmp_path / "alone").read_metrics()[0]


# ---- which prompts are kept -----------------------------------------------------------------

KEPT = {
    "one_best": ((0.2, 0.5, 0.3, 0.4), 2),
    "first_of_equals": ((0.2, 0.5, 0.5, 0.4), 2),
    "all_alike": ((0.0, 0.0, 0.0, 0.0), 1),
    "always_better": ((0.1, 0.2, 0.3, 0.4), 4),
}


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(("scores", "best"), KEPT.values(), ids=KEPT)
def test_the_best_and_the_last_are_kept(small_clip, tmp_path, by_epoch, scores, best, keep):
    tuner = fit(scripted(small_clip, scores, keep=keep), tmp_path)
    assert torch.equal(tokens_of(tmp_path, "best"), by_epoch[best])
    assert torch.equal(tokens_of(tmp_path, "last"), by_epoch[4])
    assert not torch.equal(by_epoch[1], by_epoch[4])
    assert torch.equal(tokens_of(tmp_path), tokens_of(tmp_path, keep))
    assert torch.equal(tuner.prompts.tokens, tokens_of(tmp_path))
    x = data().images.float() / 255
    for which in ("prompts", "best", "last"):
        again = Scripted.load(tmp_path, small_clip, which=which)
        assert torch.equal(again.prompts.tokens, tokens_of(tmp_path, which))
        if which == "prompts":
            assert torch.equal(again.classifier(x), tuner.classifier(x))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_without_a_folder_the_same_prompts_are_kept(small_clip, tmp_path, keep):
    wanted = fit(scripted(small_clip, (0.2, 0.5, 0.3, 0.4), keep=keep), tmp_path)
    alone = fit(scripted(small_clip, (0.2, 0.5, 0.3, 0.4), keep=keep))
    assert torch.equal(alone.prompts.tokens, wanted.prompts.tokens)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_without_validation_the_last_are_kept(small_clip, tmp_path, by_epoch, keep):
    with pytest.raises(ValueError, match=r"^patience .*val"):
        fit(scripted(small_clip, keep=keep, patience=1), tmp_path, val=False)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    fit(scripted(small_clip, keep=keep), tmp_path, val=False)
    assert sorted(by_epoch) == [1, 2, 3, 4]
    assert torch.equal(tokens_of(tmp_path), by_epoch[4])
    for which in ("best", "last"):
        assert not (tmp_path / f"{which}.safetensors").exists()
        with pytest.raises(FileNotFoundError, match=which):
            Scripted.load(tmp_path, small_clip, which=which)


# ---- patience -------------------------------------------------------------------------------

STOPS = {
    "at_once": ((0.5, 0.4, 0.6, 0.7), 1, 2),
    "equals_are_not_better": ((0.5, 0.5, 0.6, 0.7), 1, 2),
    "after_two": ((0.1, 0.3, 0.2, 0.3, 0.9, 0.9), 2, 4),
    "begun_anew_by_a_better_one": ((0.1, 0.3, 0.2, 0.4, 0.3, 0.2), 2, 6),
    "longer_than_the_run": ((0.5, 0.1, 0.1, 0.1), 9, 4),
    "in_the_last_epoch": ((0.5, 0.1, 0.1, 0.1), 3, 4),
}


class Stopped(BaseException):
    """As a kill, this is caught by nothing."""


@pytest.mark.parametrize(("scores", "patience", "last"), STOPS.values(), ids=STOPS)
def test_patience_stops_where_it_is_over(small_clip, tmp_path, monkeypatch, scores, patience, last):
    def tuner():
        return scripted(small_clip, scores, patience=patience, epochs=len(scores), keep="best")

    whole = fit(tuner(), tmp_path / "whole")
    rows = rows_of(tmp_path / "whole")
    assert [row["epoch"] for row in rows] == list(range(1, last + 1))
    write = RunFolder.write_state
    for epoch in range(1, last + 1):  # stopped behind each epoch, a run stops at the same one
        folder = tmp_path / f"stopped-{epoch}"

        def stopping(self, tensors, done, key, epoch=epoch):
            write(self, tensors, done, key)
            if done == epoch:
                raise Stopped

        monkeypatch.setattr(RunFolder, "write_state", stopping)
        with pytest.raises(Stopped):
            fit(tuner(), folder)
        monkeypatch.setattr(RunFolder, "write_state", write)
        resumed = fit(tuner(), folder, resume=True)
        assert rows_of(folder) == rows
        assert [e for e, _ in resumed.seen] == [e for e, _ in whole.seen if e >= epoch]
        for name in ("prompts", "best", "last"):
            assert torch.equal(tokens_of(folder, name), tokens_of(tmp_path / "whole", name))


METRICS = {
    "shortened": lambda lines: lines[:1],
    "gone": lambda lines: [],
    "changed": lambda lines: [lines[0].replace("0.2", "0.9"), lines[1].replace("0.5", "0.1")],
    "damaged": lambda lines: [lines[0], lines[1][:9]],
}


@pytest.mark.parametrize("change", METRICS.values(), ids=METRICS)
def test_the_metrics_do_not_decide_which_prompts_are_kept(
    small_clip, tmp_path, monkeypatch, caplog, change
):
    def tuner():
        return scripted(small_clip, (0.2, 0.5, 0.3, 0.4), keep="best", patience=3)

    fit(tuner(), tmp_path / "whole")
    folder, write = tmp_path / "part", RunFolder.write_state

    def stopping(self, tensors, done, key):
        write(self, tensors, done, key)
        if done == 2:
            raise Stopped

    monkeypatch.setattr(RunFolder, "write_state", stopping)
    with pytest.raises(Stopped):
        fit(tuner(), folder)
    monkeypatch.undo()
    metrics = folder / "metrics.jsonl"
    lines = change(metrics.read_text().splitlines())
    metrics.write_text("".join(f"{line}\n" for line in lines))
    fit(tuner(), folder, resume=True)
    for name in ("prompts", "best", "last", "state"):
        whole = (tmp_path / "whole" / f"{name}.safetensors").read_bytes()
        assert (folder / f"{name}.safetensors").read_bytes() == whole
    told = [r.getMessage() for r in caplog.records if "metrics.jsonl" in r.getMessage()]
    epochs = [row["epoch"] for row in rows_of(folder)]
    assert bool(told) is (epochs != [1, 2, 3, 4])


def test_a_state_without_its_best_score_is_refused(small_clip, tmp_path):
    """As an earlier version wrote it."""
    fit(scripted(small_clip), tmp_path)
    run = RunFolder(tmp_path)
    key = run.read_config()["key"]
    tensors, epoch = run.read_state(key)
    del tensors["best_score"]
    run.write_state(tensors, epoch, key)
    with pytest.raises(ValueError, match=r"^resume: state\.safetensors .*score.* version"):
        fit(scripted(small_clip), tmp_path, resume=True)


def test_a_run_that_is_over_tunes_no_more(small_clip, tmp_path):
    def run(resume):
        scores = (0.5, 0.1, 0.1, 0.7)
        return fit(scripted(small_clip, scores, patience=2, keep="best"), tmp_path, resume=resume)

    first = run(False)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = run(True)
    assert again.seen == []
    assert torch.equal(again.prompts.tokens, first.prompts.tokens)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


# ---- a loss that is not finite --------------------------------------------------------------


class Failing(Scripted):
    """Its loss is not finite in one batch, counted over all epochs from 0."""

    fails, value = -1, float("nan")

    def loss(self, batch):
        loss = super().loss(batch)
        return loss * self.value if len(self.seen) - 1 == self.fails else loss


@pytest.mark.parametrize(
    ("fails", "accumulate", "epoch", "step"),
    [(0, 1, 1, 1), (2, 1, 1, 3), (3, 1, 2, 4), (7, 1, 3, 8), (4, 2, 2, 3), (5, 2, 2, 4)],
)
def test_a_loss_that_is_not_finite_is_told_by_step_epoch_and_images(
    small_clip, tmp_path, by_epoch, fails, accumulate, epoch, step
):
    """Ten images are three batches, and with ``accumulate=2`` two steps, in each epoch."""
    tuner = Failing(small_clip, NAMES, FAST, accumulate=accumulate)
    start = tuner.prompts.tokens.detach().clone()
    tuner.fails = fails
    with pytest.raises(FloatingPointError) as error:
        fit(tuner, tmp_path)
    images = re.escape(str(tuner.seen[fails][1]))
    told = rf"nan.* step {step}\b.* epoch {epoch}\b.*lr.*{images}.* epoch {epoch - 1}\b"
    assert re.search(told, str(error.value))
    good = by_epoch[epoch - 1] if epoch > 1 else start
    assert torch.equal(tuner.prompts.tokens, good)
    assert not (tmp_path / "prompts.safetensors").exists()
    assert [row["epoch"] for row in rows_of(tmp_path)] == list(range(1, epoch))
    # what was tuned until then goes on to the bits of a run that met no such loss
    again = fit(
        Failing(small_clip, NAMES, FAST, accumulate=accumulate), tmp_path, resume=epoch >= 1
    )
    whole = fit(Failing(small_clip, NAMES, FAST, accumulate=accumulate), tmp_path / "whole")
    assert torch.equal(again.prompts.tokens, whole.prompts.tokens)
    assert rows_of(tmp_path) == rows_of(tmp_path / "whole")


def test_an_infinite_loss_of_many_images_names_the_first_of_them(small_clip):
    tuner = Failing(small_clip, NAMES, FAST | {"batch": 70})
    tuner.fails, tuner.value = 0, float("inf")
    with pytest.raises(FloatingPointError, match=r" inf.* step 1\b") as error:
        fit(tuner, n=70)
    assert re.search(rf"{re.escape(str(tuner.seen[0][1][:64]))}.*\b6\b", str(error.value))


def test_no_step_is_taken_with_a_loss_that_is_not_finite(small_clip):
    tuner = Failing(small_clip, NAMES, FAST)
    tuner.fails, steps = 1, []
    handle = register_optimizer_step_pre_hook(lambda *_: steps.append(1))
    try:
        with pytest.raises(FloatingPointError):
            fit(tuner)
    finally:
        handle.remove()
    assert len(steps) == 1
    assert all(p.isfinite().all() for p in tuner.prompts.parameters())
