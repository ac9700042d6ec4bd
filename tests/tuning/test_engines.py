"""How a tuner executes: engine, precision, compile, class_chunk; in its run folder, too."""

import copy
import json
from contextlib import contextmanager, nullcontext

import pytest
import torch
from helpers.models import small_model
from torch.nn.modules.module import register_module_forward_pre_hook

from fastprompt import AdvPTTuner, load_clip
from fastprompt._utils import dtypes as _dtypes
from fastprompt.data import ImageTensors

NAMES = ["cat", "very_small dog", "red circle", "fish", "bird"]
FAST = {"epochs": 2, "n_ctx": 2, "steps": 2, "batch": 4, "attack_batch": 4, "lr": 0.05}
EXACT, SINGLE = 1e-10, 1e-5


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def pixels(n: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def data():
    return ImageTensors(pixels(), torch.arange(10) % len(NAMES))


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["config"]


@pytest.fixture
def compiled(monkeypatch):
    """What was handed to `torch.compile`, which here compiles nothing."""
    seen = []

    def compile_(function, **options):
        seen.append((function.__name__, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    return seen


@contextmanager
def _no_work():
    def refuse(module, *_):
        raise AssertionError(f"{type(module).__name__} ran before the settings were checked")

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def no_work():
    """Inside, no module may run."""
    return _no_work()


@pytest.fixture
def little_memory(monkeypatch):
    """From here on, a machine on which classes are computed one by one."""

    def take():
        monkeypatch.setattr("fastprompt.towers.text.total_memory", lambda device: 1)

    return take


# ---- the engines agree ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "tiny-shapes"])
def test_a_run_is_the_same_on_both_engines(name, data):
    """In float64 no sign of the bank's attack turns, and SGD hardly amplifies rounding."""
    clip = load_clip(small_model().double()) if name == "small" else load_clip(name).double()
    options = FAST | {"ctx_init": None, "epochs": 3}
    fast, reference = (
        AdvPTTuner(clip, NAMES, options, engine=e).fit(data, progress=False)
        for e in ("fast", "reference")
    )
    assert type(fast.model.text) is not type(reference.model.text)
    (features, labels), (wanted, same) = (t._banks["train"] for t in (fast, reference))
    assert torch.equal(labels, same)
    assert relative(features, wanted) <= EXACT
    assert relative(fast.prompts.tokens, reference.prompts.tokens) <= EXACT
    start = AdvPTTuner(clip, NAMES, options).prompts.tokens
    assert relative(fast.prompts.tokens, start) > 1e-2  # it has learned
    x = pixels(3).float() / 255
    assert relative(fast.classifier(x), reference.classifier(x)) <= EXACT


def test_one_step_is_the_same_in_float32(small_clip, data):
    gradients = []
    for engine in ("fast", "reference"):
        tuner = AdvPTTuner(small_clip, NAMES, FAST, engine=engine)
        tuner.prepare(data, None, None, False)
        # one bank for both: in float32 a sign of the attack may turn
        features = small_clip.encode_image(pixels().float() / 255)
        tuner._banks["train"] = features, data.labels
        loss = tuner.loss(torch.arange(6))
        (grad,) = torch.autograd.grad(loss, tuner.prompts.tokens)
        gradients.append((loss, grad))
    (loss, grad), (wanted, wanted_grad) = gradients
    assert wanted_grad.norm() > 1e-6
    assert relative(loss, wanted) <= SINGLE
    assert relative(grad, wanted_grad) <= SINGLE


def test_banks_of_two_engines_or_precisions_are_not_mixed_up(small_clip, data, tmp_path):
    for options in ({}, {"engine": "reference"}, {"precision": "bf16"}):
        options = FAST | {"epochs": 1, "bank_dir": tmp_path} | options
        AdvPTTuner(small_clip, NAMES, options).fit(data, progress=False)
    assert len(list(tmp_path.iterdir())) == 3


# ---- settings -------------------------------------------------------------------------------


REFUSED = {
    "engine": ({"engine": "slow"}, "engine"),
    "precision": ({"precision": "int8"}, "precision"),
    "precision_of_the_reference": (
        {"precision": "fp64", "engine": "reference"},
        "^precision .*'fp32'.*'reference'",
    ),
    "compiled_reference": ({"compile": True, "engine": "reference"}, "^compile .*'reference'"),
    "chunked_reference": ({"class_chunk": 2, "engine": "reference"}, "^class_chunk .*'reference'"),
    "class_chunk": ({"class_chunk": 0}, "^class_chunk .*1.*0"),
    "kind_of_class_chunk": ({"class_chunk": "two"}, "class_chunk"),
    "kind_of_compile": ({"compile": "often"}, "compile"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_are_refused(options, message, small_clip, no_work):
    with no_work, pytest.raises(ValueError, match=message):
        AdvPTTuner(small_clip, NAMES, FAST, **options)


def test_emulated_bf16_runs_with_a_warning(small_clip, caplog):
    _dtypes._log_once.cache_clear()
    tuner = AdvPTTuner(small_clip, NAMES, FAST, precision="bf16")
    assert tuner.config.precision == "bf16"
    assert [r.levelname for r in caplog.records if "slower" in r.message] == ["WARNING"]
    assert AdvPTTuner(small_clip, NAMES, FAST).config.precision == "fp32"


def test_compile_is_asked_for(small_clip, compiled):
    assert AdvPTTuner(small_clip, NAMES, FAST).config.compile is False  # on a CPU
    assert AdvPTTuner(small_clip, NAMES, FAST, engine="reference").config.compile is False
    assert compiled == []
    tuner = AdvPTTuner(small_clip, NAMES, FAST, compile=True)
    assert tuner.config.compile is True
    assert compiled == []  # before the first use
    tuner.model(pixels(2).float() / 255)
    assert all(options == {"fullgraph": True} for _, options in compiled)
    assert {"_text_features", "one_block"} == {name for name, _ in compiled}


def test_a_bf16_run_leaves_the_model_alone(small_clip, data, tmp_path):
    state = {k: v.clone() for k, v in small_clip.model.state_dict().items()}
    tuner = AdvPTTuner(small_clip, NAMES, FAST, precision="bf16")
    tuner.fit(data, out=tmp_path / "run", progress=False)
    assert config_of(tmp_path / "run")["precision"] == "bf16"
    assert tuner.model.image.dtype == torch.bfloat16
    x = pixels(3).float() / 255
    logits = tuner.classifier(x)
    assert logits.dtype == torch.float32
    full = AdvPTTuner(small_clip, NAMES, FAST, precision="fp32")
    full.prompts.load_state_dict(tuner.prompts.state_dict())
    assert relative(logits, full.classifier(x)) > 1e-4  # it did run in bfloat16
    assert all(torch.equal(v, state[k]) for k, v in small_clip.model.state_dict().items())
    assert tuner._banks["train"][0].dtype == torch.float32
    again = AdvPTTuner.load(tmp_path / "run", small_clip)
    assert again.config.precision == "bf16"
    assert torch.equal(again.classifier(x), logits)


# ---- the run folder -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ("fp32", False, len(NAMES))),
        ({"class_chunk": 2}, ("fp32", False, 2)),
        ({"precision": "bf16", "compile": True}, ("bf16", True, len(NAMES))),
        ({"engine": "reference"}, ("fp32", False, None)),
    ],
    ids=["defaults", "chunk", "bf16_compiled", "reference"],
)
def test_the_run_folder_says_how_it_was_executed(
    small_clip, data, tmp_path, compiled, options, wanted
):
    tuner = AdvPTTuner(small_clip, NAMES, FAST | {"epochs": 1}, **options)
    tuner.fit(data, out=tmp_path / "run", progress=False)
    stored = config_of(tmp_path / "run")
    assert (stored["precision"], stored["compile"], stored["class_chunk"]) == wanted
    assert (tuner.model.precision, tuner.config.compile, tuner.model.class_chunk) == wanted


class Stop(Exception):
    """What stops a run."""


def chunks_of(tuner) -> list[int]:
    """The classes in each chunk of the tuner's text tower."""
    return [len(chunk.order) for chunk in tuner.model.text.chunks]


@pytest.fixture
def stopped(small_clip, data, tmp_path, monkeypatch):
    """Begin a run and stop it in its second epoch; where it lies."""

    def begin(**options):
        real, calls = AdvPTTuner.loss, []

        def loss(self, rows):
            calls.append(rows)
            if len(calls) == 5:
                raise Stop
            return real(self, rows)

        with monkeypatch.context() as patch:
            patch.setattr(AdvPTTuner, "loss", loss)
            with pytest.raises(Stop):
                AdvPTTuner(small_clip, NAMES, FAST, **options).fit(
                    data, out=tmp_path / "run", progress=False
                )
        return tmp_path / "run"

    return begin


@pytest.mark.parametrize("given", [{}, {"class_chunk": 3}], ids=["by_default", "as_asked_for"])
def test_a_resumed_run_goes_on_with_its_chunk(small_clip, data, stopped, little_memory, given):
    straight = AdvPTTuner(small_clip, NAMES, FAST, **given).fit(data, progress=False)
    folder = stopped(**given)
    wanted = given.get("class_chunk", len(NAMES))
    little_memory()
    tuner = AdvPTTuner(small_clip, NAMES, FAST)
    assert tuner.config.class_chunk == 1  # what this machine would take
    tuner.fit(data, out=folder, resume=True, progress=False)
    assert tuner.config.class_chunk == tuner.model.class_chunk == wanted
    assert chunks_of(tuner)[0] == wanted
    assert config_of(folder)["class_chunk"] == wanted
    assert torch.equal(tuner.prompts.tokens, straight.prompts.tokens)
    again = AdvPTTuner(small_clip, NAMES, FAST, class_chunk=wanted)
    again.fit(data, out=folder, resume=True, progress=False)  # the same may be said


@pytest.mark.parametrize(
    "given",
    [{"class_chunk": 2}, {"class_chunk": 100}, {"compile": True}, {"precision": "bf16"}],
    ids=["chunk", "chunk_of_more_than_all", "compile", "precision"],
)
def test_a_run_is_resumed_with_the_settings_it_was_begun_with(
    small_clip, data, stopped, compiled, given
):
    folder = stopped(**given)
    again = AdvPTTuner(small_clip, NAMES, FAST, **given)
    again.fit(data, out=folder, resume=True, progress=False)
    straight = AdvPTTuner(small_clip, NAMES, FAST, **given).fit(data, progress=False)
    assert torch.equal(again.prompts.tokens, straight.prompts.tokens)


def test_a_resumed_run_refuses_another_way_of_execution(small_clip, data, stopped, compiled):
    folder = stopped(class_chunk=3)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for options, message in (
        ({"class_chunk": 2}, "^class_chunk: .* 3.* 2"),
        ({"compile": True}, "^compile: .* False.* True"),
        ({"precision": "bf16"}, "^resume: .*new run"),
        ({"engine": "reference"}, "^resume: .*new run"),
    ):
        with pytest.raises(ValueError, match=message):
            AdvPTTuner(small_clip, NAMES, FAST, **options).fit(
                data, out=folder, resume=True, progress=False
            )
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_run_is_loaded_as_this_machine_executes(
    small_clip, data, tmp_path, compiled, little_memory
):
    clip = load_clip(copy.deepcopy(small_clip.model).double())
    tuner = AdvPTTuner(clip, NAMES, FAST, compile=True, class_chunk=2)
    tuner.fit(data, out=tmp_path / "run", progress=False)
    before = config_of(tmp_path / "run")
    little_memory()
    compiled.clear()
    again = AdvPTTuner.load(tmp_path / "run", clip)
    assert compiled == []  # by default nothing is compiled on a CPU
    assert again.config.class_chunk == 1
    x = pixels(4).float() / 255
    assert relative(again.classifier(x), tuner.classifier(x)) <= EXACT
    again.save(tmp_path / "run")
    assert config_of(tmp_path / "run") == before
    assert torch.equal(AdvPTTuner.load(tmp_path / "run", clip).prompts.tokens, tuner.prompts.tokens)
    again.save(tmp_path / "copy")
    copied = AdvPTTuner.load(tmp_path / "copy", clip)
    assert torch.equal(copied.prompts.tokens, tuner.prompts.tokens)


@pytest.mark.parametrize("setting", [{"engine": "reference"}, {"precision": "bf16"}])
def test_zero_shot_is_judged_as_the_tuned_one_is(small_clip, data, setting):
    tuner = AdvPTTuner(small_clip, NAMES, FAST, **setting)
    rows = tuner.evaluate(data, ["clean"], limit=2, progress=False).rows
    ((key, value),) = setting.items()
    assert [row["model"] for row in rows] == ["zero-shot", "tuned"]
    assert [row[key] for row in rows] == [value, value]


# ---- precision="auto" on other hardware -------------------------------------------------------


@contextmanager
def units():
    """Another machine, whose CPU multiplies bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dtypes, "why_no_bf16", lambda device: "")
        yield


plain = nullcontext  # see conftest.py


def lacking(precision: str, device: torch.device):
    raise ValueError(f"precision: {device} does not support it")


def test_a_run_is_loaded_where_its_precision_is_lacking(
    small_clip, data, tmp_path, monkeypatch, caplog
):
    AdvPTTuner(small_clip, NAMES, FAST, precision="bf16").fit(
        data, out=tmp_path / "run", progress=False
    )
    monkeypatch.setattr("fastprompt.tuning.identity.check_precision", lacking)
    tuner = AdvPTTuner.load(tmp_path / "run", small_clip)
    assert tuner.config.precision == "fp32"
    assert "bf16" in caplog.text
    assert tuner.classifier(pixels(2).float() / 255).isfinite().all()


def test_a_run_keeps_its_precision_on_a_cpu_that_emulates_it(small_clip, data, tmp_path, caplog):
    with units():
        tuner = AdvPTTuner(small_clip, NAMES, FAST).fit(data, out=tmp_path / "run", progress=False)
    assert config_of(tmp_path / "run")["precision"] == "bf16"
    _dtypes._log_once.cache_clear()
    again = AdvPTTuner.load(tmp_path / "run", small_clip)
    assert again.config.precision == "bf16"
    assert [r.levelname for r in caplog.records if "slower" in r.message] == ["WARNING"]
    x = pixels(2).float() / 255
    assert torch.equal(again.classifier(x), tuner.classifier(x))


@pytest.mark.parametrize("begun_with_units", [True, False])
def test_a_resumed_run_keeps_its_precision(small_clip, data, stopped, caplog, begun_with_units):
    """Bit for bit what the run without a stop gives, on the hardware where it began."""
    began, there = (units, plain) if begun_with_units else (plain, units)
    with began():
        straight = AdvPTTuner(small_clip, NAMES, FAST).fit(data, progress=False)
        folder = stopped()
    wanted, other = ("bf16", "fp32") if begun_with_units else ("fp32", "bf16")
    assert config_of(folder)["precision"] == wanted
    _dtypes._log_once.cache_clear()
    with there():
        tuner = AdvPTTuner(small_clip, NAMES, FAST)
        assert tuner.config.precision == other
        tuner.fit(data, out=folder, resume=True, progress=False)
    assert tuner.config.precision == tuner.model.precision == wanted
    assert torch.equal(tuner.prompts.tokens, straight.prompts.tokens)
    slow = [r for r in caplog.records if "slower" in r.message]
    assert len(slow) == begun_with_units


def test_a_run_is_not_resumed_where_its_precision_is_lacking(
    small_clip, data, stopped, monkeypatch
):
    with units():
        folder = stopped()
    monkeypatch.setattr("fastprompt.tuning.saving.check_precision", lacking)
    tuner = AdvPTTuner(small_clip, NAMES, FAST)
    with pytest.raises(ValueError, match=r"^resume: .*'bf16'.*cpu.*new run"):
        tuner.fit(data, out=folder, resume=True, progress=False)
    assert tuner.config.precision == "fp32"  # a refusal changes nothing


def test_a_run_of_other_settings_is_refused_and_leaves_the_precision(small_clip, data, stopped):
    with units():
        folder = stopped()
    for options, message in ({"seed": 1}, "new run"), ({"precision": "fp32"}, "new run"):
        tuner = AdvPTTuner(small_clip, NAMES, FAST, **options)
        with pytest.raises(ValueError, match=f"^resume: .*{message}"):
            tuner.fit(data, out=folder, resume=True, progress=False)
        assert tuner.config.precision == "fp32"
