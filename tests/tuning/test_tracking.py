"""TensorBoard curves are written where they are asked for."""

import sys

import pytest

from fastprompt import AdvPTTuner, load_data

FAST = {"epochs": 2, "n_ctx": 2, "steps": 1, "eps": "8/255"}


@pytest.fixture(scope="module")
def data():
    return load_data("patterns", shots=1)


def test_curves_hold_the_metrics(small_clip, data, tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    tuner.fit(data.train, out=tmp_path / "run", track=True, progress=False)
    curves = loader.EventAccumulator(str(tmp_path / "run/tensorboard"))
    curves.Reload()
    assert {"loss", "lr", "accuracy"} <= set(curves.Tags()["scalars"])
    assert [event.step for event in curves.Scalars("loss")] == [1, 2]


def test_missing_package_and_missing_folder(small_clip, data, tmp_path, monkeypatch):
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    with pytest.raises(ValueError, match=r"^out .*track"):
        tuner.fit(data.train, track=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RuntimeError, match=r"pip install 'fastprompt\[track\]'"):
        tuner.fit(data.train, out=tmp_path / "run", track=True)
