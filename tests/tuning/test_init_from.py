"""What a run begins with: the prompts of another run, and the classes it is for."""

import json
import re
import shutil

import pytest
import torch
from helpers.models import small_model

from fastprompt import AdvPTTuner, load_clip
from fastprompt._utils.checks import first_difference
from fastprompt._utils.files import read_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt.data import ImageTensors, load_data
from fastprompt.methods.ampt import AMPTTuner
from fastprompt.methods.apt import APTTuner
from fastprompt.methods.capt import CAPTTuner
from fastprompt.methods.nap import NAPTuner
from fastprompt.tuning.tuner import Tuner

NAMES = ["cat", "very small dog", "red fish"]
FAST = {"epochs": 1, "batch": 5, "n_ctx": 2, "steps": 1, "lr": 0.05, "warmup_epochs": 0}


def data(n: int = 10, seed: int = 0, names=None) -> ImageTensors:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % len(NAMES), classnames=names)


TRAIN, VAL, TEST = data(), data(4, 1), data(5, 2)


def make(kind: type[Tuner], clip, names=NAMES, **changes) -> Tuner:
    few = {"n_prompts": 3} if kind is AMPTTuner else {}
    return kind(clip, names, FAST | few | changes)


def fit(tuner: Tuner, folder, **options) -> Tuner:
    return tuner.fit(TRAIN, None, folder, progress=False, **options)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def tuned(folder) -> dict:
    return read_tensors(folder / "prompts.safetensors", "prompts")[0]


# ---- prompts of another run -----------------------------------------------------------------

SAME_SHAPES = [
    *((kind, kind) for kind in (AdvPTTuner, APTTuner, AMPTTuner, CAPTTuner, NAPTuner)),
    (AdvPTTuner, APTTuner),
    (APTTuner, AdvPTTuner),
    (CAPTTuner, NAPTuner),
]


@pytest.mark.parametrize(
    ("first", "then"), SAME_SHAPES, ids=[f"{a.method}-{b.method}" for a, b in SAME_SHAPES]
)
def test_the_prompts_of_a_run_are_where_another_starts(small_clip, tmp_path, first, then):
    fit(make(first, small_clip, seed=1), tmp_path / "first")
    given = tuned(tmp_path / "first")
    plain = make(then, small_clip).prompts.state_dict()
    tuner = make(then, small_clip, init_from=tmp_path / "first")
    start = tuner.prompts.state_dict()
    assert start.keys() == plain.keys()
    assert equal({k: start[k] for k in given}, given)
    # what that run had not, such as refiners, has its own start values
    own = {k: v for k, v in plain.items() if k not in given}
    assert equal({k: start[k] for k in own}, own)
    assert bool(own) == (first is CAPTTuner and then is NAPTuner)
    assert not torch.equal(start["tokens"], plain["tokens"])
    # a run from there is that of a tuner whose start values were put in by hand
    twin, build = make(then, small_clip), type(tuner).build_prompts

    def by_hand(self):
        prompts = build(self)
        prompts.load_state_dict(given, strict=False)
        return prompts

    twin.build_prompts = by_hand.__get__(twin)
    fit(tuner, tmp_path / "then"), fit(twin, None)
    assert equal(tuner.prompts.state_dict(), twin.prompts.state_dict())
    assert not torch.equal(tuner.prompts.state_dict()["tokens"], given["tokens"])
    assert equal(tuned(tmp_path / "first"), given)


def test_a_run_may_be_loaded_when_its_start_is_gone(small_clip, tmp_path):
    fit(make(AdvPTTuner, small_clip), tmp_path / "first")
    tuner = fit(make(APTTuner, small_clip, init_from=tmp_path / "first"), tmp_path / "then")
    shutil.rmtree(tmp_path / "first")
    again = APTTuner.load(tmp_path / "then", small_clip)
    assert equal(again.prompts.state_dict(), tuner.prompts.state_dict())
    assert again.config == tuner.config
    assert again.config.init_from == str(tmp_path / "first")
    x = TEST.images.float() / 255
    assert torch.equal(again.classifier(x), tuner.classifier(x))
    again.save(tmp_path / "then")  # it is the same run
    again.save(tmp_path / "copy")
    copied = APTTuner.load(tmp_path / "copy", small_clip)
    assert equal(copied.prompts.state_dict(), tuner.prompts.state_dict())
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "first"))):
        fit(again, None)  # to tune it anew takes the start


def test_another_template_is_warned_of(small_clip, tmp_path, caplog):
    words = "[ctx] of a {}."
    make(APTTuner, small_clip, template=words).save(tmp_path / "first")
    make(APTTuner, small_clip, template=words, init_from=tmp_path / "first")
    assert not caplog.text
    make(APTTuner, small_clip, init_from=tmp_path / "first")
    assert f"{tmp_path / 'first'} was tuned with template={words!r}" in caplog.text


class Stopped(BaseException):
    """As a kill, this is caught by nothing."""


def test_a_changed_start_is_another_run(small_clip, tmp_path, monkeypatch):
    def begun(seed):
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
        fit(make(APTTuner, small_clip, seed=seed), tmp_path / "first")
        return make(APTTuner, small_clip, epochs=3, init_from=tmp_path / "first")

    whole = fit(begun(1), tmp_path / "whole")
    write = RunFolder.write_state

    def stopping(self, tensors, epoch, key):
        write(self, tensors, epoch, key)
        raise Stopped

    monkeypatch.setattr(RunFolder, "write_state", stopping)
    tuner = make(APTTuner, small_clip, epochs=3, init_from=tmp_path / "first")
    with pytest.raises(Stopped):
        fit(tuner, tmp_path / "then")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"^resume: .*new run"):
        fit(begun(2), tmp_path / "then", resume=True)
    resumed = fit(begun(1), tmp_path / "then", resume=True)
    assert equal(resumed.prompts.state_dict(), whole.prompts.state_dict())


def test_a_model_in_float64_takes_prompts_in_float32(small_clip, tmp_path):
    fit(make(APTTuner, small_clip), tmp_path / "first")
    double = load_clip(small_model().double())
    tokens = make(APTTuner, double, init_from=tmp_path / "first").prompts.tokens
    assert tokens.dtype == torch.float64
    assert torch.equal(tokens, tuned(tmp_path / "first")["tokens"].double())


@pytest.mark.parametrize(
    ("first", "then", "changes", "shapes"),
    [
        (AdvPTTuner, APTTuner, {"n_ctx": 3}, ("tokens [2, 24]", "[3, 24]")),
        (APTTuner, APTTuner, {"class_specific": True}, ("tokens [2, 24]", "[3, 2, 24]")),
        (APTTuner, AMPTTuner, {}, ("tokens [2, 24]", "[3, 2, 24]")),
        (AMPTTuner, AMPTTuner, {"n_prompts": 4}, ("head.router.second.bias [3]", "[4]")),
        (CAPTTuner, NAPTuner, {"depth": 1}, ("map_bias [2, 1, 32]", "[1, 1, 32]")),
        (CAPTTuner, APTTuner, {}, ("map_bias [2, 1, 32]", "nothing")),
        (NAPTuner, CAPTTuner, {}, ("refiners.0.first.bias [64]", "nothing")),
    ],
)
def test_shapes_that_do_not_fit_are_told(small_clip, tmp_path, first, then, changes, shapes):
    fit(make(first, small_clip), tmp_path / "first")
    parts = map(re.escape, (f"init_from: {tmp_path / 'first'} ", *shapes, "n_ctx"))
    with pytest.raises(ValueError, match="^" + ".*".join(parts)):
        make(then, small_clip, init_from=tmp_path / "first", **changes)


def test_a_start_that_is_no_finished_run_is_told(small_clip, tmp_path):
    def start():
        return make(APTTuner, small_clip, init_from=tmp_path / "run")

    with pytest.raises(FileNotFoundError, match=r"/run .*config\.json"):
        start()
    make(APTTuner, small_clip).save(tmp_path / "run")
    start()
    prompts = tmp_path / "run" / "prompts.safetensors"
    prompts.unlink()
    with pytest.raises(FileNotFoundError, match=r"prompts\.safetensors"):
        start()
    make(APTTuner, small_clip).save(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["config"]["n_ctx"] = 5
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"/run: prompts\.safetensors .*config\.json"):
        start()


# ---- classes --------------------------------------------------------------------------------

OTHERS = {
    "other_names": ["cat", "very small dog", "blue fish"],
    "another_order": ["very small dog", "cat", "red fish"],
    "fewer": ["cat", "very small dog"],
    "more": ["cat", "very small dog", "red fish", "bird"],
}


def differs(names: list[str]) -> str:
    return re.escape(first_difference(names, NAMES))


@pytest.mark.parametrize("kind", [AdvPTTuner, APTTuner])
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_images_of_other_classes_are_refused(small_clip, tmp_path, kind, others):
    same, other = data(8, names=NAMES), data(8, names=others)
    other.labels %= len(others)
    tuner = make(kind, small_clip)
    for name, given in (("train", (other, same)), ("val", (same, other))):
        with pytest.raises(ValueError, match=f"^{name} .*{differs(others)}"):
            tuner.fit(*given, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=f"^test .*{differs(others)}"):
        tuner.evaluate(other, ["clean"], progress=False)


def test_images_of_the_same_classes_or_of_none_said_are_taken(small_clip):
    underscored = data(8, names=["cat", "very_small_dog", "red fish"])
    for images in (data(8, names=NAMES), underscored, data(8)):
        tuner = make(APTTuner, small_clip).fit(images, images, progress=False)
        assert tuner.evaluate(images, ["clean"], progress=False).rows[0]["n"] == 8


def test_halves_of_a_data_set_are_not_mixed_up(small_clip):
    base, new = (load_data("patterns", shots=1, classes=half) for half in ("base", "new"))
    tuner = make(APTTuner, small_clip, base.classnames)
    tuner.fit(base.train, base.val, progress=False)
    with pytest.raises(ValueError, match=f"^test .*'{new.classnames[0]}'.*'{base.classnames[0]}'"):
        tuner.evaluate(new.test, ["clean"], progress=False)


def test_a_resume_with_other_classes_says_so(small_clip, tmp_path):
    fit(make(APTTuner, small_clip), tmp_path)
    for others in OTHERS.values():
        train = data(8)
        train.labels %= len(others)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=f"^resume: .*{differs(others)}"):
            make(APTTuner, small_clip, others).fit(train, out=tmp_path, resume=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
