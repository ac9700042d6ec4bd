"""Callbacks are called as documented; trackers hold what metrics.jsonl holds."""

import inspect
import json
import math
import struct
import sys

import numpy as np
import pytest
import torch

from fastprompt import AdvPTTuner, APTTuner, Callback, load_data
from fastprompt._utils.run_folder import RunFolder
from fastprompt.tuning import tracking

FAST = {"epochs": 2, "n_ctx": 2, "steps": 1, "eps": "8/255"}


@pytest.fixture(scope="module")
def data():
    return load_data("patterns", shots=2)


class Seen(Callback):
    """Records its calls; raises ValueError at one of them."""

    def __init__(self, fails=""):
        self.calls, self.losses, self.fails = [], [], fails

    def _add(self, call):
        self.calls.append(call)
        if str(call) == self.fails:
            raise ValueError("no space")

    def on_step(self, tuner, step, loss):
        self.losses.append(loss)
        self._add(step)

    def on_epoch(self, tuner, row):
        self.rows = [*getattr(self, "rows", ()), row]
        self._add(f"epoch {row['epoch']}")

    def on_end(self, tuner, error):
        self._add(type(error).__name__)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_calls_and_losses(small_clip, data, tmp_path, accumulate):
    tuner = APTTuner(small_clip, data.classnames, **FAST, batch=5, accumulate=accumulate)
    one, other = Seen(), Seen()
    tuner.fit(data.train, out=tmp_path / "run", callbacks=[one, other], progress=False)
    n = len(data.train)
    steps = math.ceil(n / (5 * accumulate))
    first, second = range(1, steps + 1), range(steps + 1, 2 * steps + 1)
    assert one.calls == [*first, "epoch 1", *second, "epoch 2", "NoneType"]
    assert other.calls == one.calls
    assert one.rows == RunFolder(tmp_path / "run").read_metrics()
    assert not any(loss.requires_grad or loss.ndim for loss in one.losses)
    # the epoch's loss is the mean over its examples
    sizes = [len(rows) for rows in torch.arange(n).split(5 * accumulate)]
    total = sum(float(loss) * size for loss, size in zip(one.losses[:steps], sizes, strict=True))
    assert total / n == pytest.approx(one.rows[0]["loss"], rel=1e-6)


def test_callbacks_change_no_bit(small_clip, data):
    plain, called = (
        APTTuner(small_clip, data.classnames, **FAST).fit(
            data.train, callbacks=callbacks, progress=False
        )
        for callbacks in ([], [Seen()])
    )
    assert torch.equal(plain.prompts.tokens, called.prompts.tokens)


@pytest.mark.parametrize("fails", ["2", "epoch 1", "epoch 2"])
def test_a_callback_that_fails_is_named_and_nothing_is_lost(small_clip, data, tmp_path, fails):
    whole = APTTuner(small_clip, data.classnames, **FAST, batch=5)
    whole.fit(data.train, out=tmp_path / "whole", progress=False)
    tuner = APTTuner(small_clip, data.classnames, **FAST, batch=5)
    start = tuner.prompts.tokens.detach().clone()
    bad, other = Seen(fails), Seen()
    with pytest.raises(RuntimeError, match=r"callbacks: on_\w+ of .*Seen raised ValueError: no sp"):
        tuner.fit(data.train, out=tmp_path / "run", callbacks=[bad, other], progress=False)
    assert bad.calls[-2:] == [int(fails) if fails == "2" else fails, "CallbackError"]
    assert other.calls[-1] == "CallbackError"
    done = 0 if fails == "2" else int(fails[-1])
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, done + 1))
    if not done:  # the prompts are those after the last whole epoch
        assert torch.equal(tuner.prompts.tokens, start)
    again = APTTuner(small_clip, data.classnames, **FAST, batch=5)
    again.fit(data.train, out=tmp_path / "run", resume=True, progress=False)
    assert torch.equal(again.prompts.tokens, whole.prompts.tokens)


def test_an_end_that_fails_keeps_none_from_theirs(small_clip, data, tmp_path, caplog):
    tuner = APTTuner(small_clip, data.classnames, **FAST)
    callbacks = [Seen("NoneType"), Seen("NoneType"), Seen()]
    with pytest.raises(RuntimeError, match="on_end of"):
        tuner.fit(data.train, out=tmp_path / "run", callbacks=callbacks, progress=False)
    assert all(one.calls[-1] == "NoneType" for one in callbacks)
    assert "on_end of" in caplog.text
    assert torch.equal(
        APTTuner.load(tmp_path / "run", small_clip).prompts.tokens, tuner.prompts.tokens
    )


class Stopped(Callback):
    def on_step(self, tuner, step, loss):
        raise KeyboardInterrupt


def test_an_interrupt_passes(small_clip, data):
    seen = Seen()
    with pytest.raises(KeyboardInterrupt):
        APTTuner(small_clip, data.classnames, **FAST).fit(
            data.train, callbacks=[seen, Stopped()], progress=False
        )
    assert seen.calls == [1, "KeyboardInterrupt"]


# ---- trackers ----------------------------------------------------------------------------------


def tuned(small_clip, data, folder, *callbacks):
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    tuner.fit(data.train, data.val, out=folder, callbacks=callbacks, progress=False)
    rows = RunFolder(folder).read_metrics()
    assert len(rows) == 2
    return rows


def test_tensorboard_holds_the_metrics(small_clip, data, tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = tuned(small_clip, data, tmp_path / "run", "tensorboard")
    curves = loader.EventAccumulator(str(tmp_path / "run/tensorboard"))
    curves.Reload()
    names = rows[0].keys() - {"epoch"}
    assert set(curves.Tags()["scalars"]) == names
    for name in names:
        values = [(event.step, event.value) for event in curves.Scalars(name)]
        assert values == [(row["epoch"], np.float32(row[name])) for row in rows]


def wandb_records(data):
    """The records in a file of LevelDB's log format, behind a header of 7 bytes."""
    place, whole = 7, b""
    while place < len(data):
        left = -place % 32768
        if 0 < left < 7:  # the rest of a block is too small for a record
            place += left
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_holds_the_metrics(small_clip, data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(name, value)
    rows = tuned(small_clip, data, tmp_path / "run", "wandb")
    wandb.teardown()  # waits until its process has written the file
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    logged, config = [], {}
    for line in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(line)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            logged.append({(i.key or "/".join(i.nested_key)): i.value_json for i in items})
        elif kind in ("run", "config"):
            update = record.run.config.update if kind == "run" else record.config.update
            config |= {item.key: item.value_json for item in update}
    for row, found in zip(rows, logged, strict=True):
        assert {key: json.loads(found[key]) for key in row} == row
        assert json.loads(found["_step"]) == row["epoch"]
    assert json.loads(config["method"]) == "advpt"
    assert json.loads(config["epochs"]) == 2


def test_mlflow_holds_the_metrics(small_clip, data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    rows = tuned(small_clip, data, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "fastprompt"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["method"] == "advpt"
    assert found.data.metrics.keys() == rows[0].keys()
    for name in rows[0]:
        history = client.get_metric_history(found.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [(row["epoch"], row[name]) for row in rows]


def test_an_adapter_is_short():
    for adapter in tracking.TRACKERS.values():
        assert len(inspect.getsource(adapter).splitlines()) <= 30


def test_missing_packages_are_named_before_anything_is_written(small_clip, data, tmp_path):
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    with pytest.raises(ValueError, match=r"^out .*tensorboard"):
        tuner.fit(data.train, callbacks=["tensorboard"])
    for name, tracker in tracking.TRACKERS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, tracker.module, None)
            with pytest.raises(
                RuntimeError, match=rf"^track: .*pip install '{tracker.package[:5]}"
            ):
                tuner.fit(data.train, out=tmp_path / "run", callbacks=[name])
    assert not list(tmp_path.iterdir())


def test_names_are_split():
    assert tracking.split_trackers("tensorboard, tensorboard") == ["tensorboard"]
    assert tracking.split_trackers(None) == []
    for bad in ("true", "", "tensorboard,"):
        with pytest.raises(ValueError, match="track"):
            tracking.split_trackers(bad)


def test_a_tracker_that_cannot_start_is_named_and_the_others_end(
    small_clip, data, tmp_path, monkeypatch
):
    class Broken(tracking.Tracker):
        module = package = "torch"

        def __init__(self, folder, settings=None):
            raise OSError("no server")

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", Broken)
    seen, tuner = Seen(), APTTuner(small_clip, data.classnames, **FAST)
    with pytest.raises(RuntimeError, match=r"^callbacks: mlflow could not start .*no server"):
        tuner.fit(data.train, out=tmp_path / "run", callbacks=[seen, "mlflow"], progress=False)
    assert seen.calls == ["RuntimeError"]
    tuner.fit(data.train, out=tmp_path / "run", resume=True, progress=False)
