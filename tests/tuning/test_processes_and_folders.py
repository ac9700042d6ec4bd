"""Processes that tune together: one run folder, resuming with another number, what they refuse."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.method_checks import EXACT, NAMES, SETTINGS, clip_of, data, relative
from helpers.ranks import together

from fastprompt._utils import versions
from fastprompt._utils.files import read_tensors
from fastprompt._utils.run_folder import RunFolder
from fastprompt.clip.frozen import FrozenCLIP
from fastprompt.methods.registry import TUNERS
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.tuning.tuner import Tuner

VAL = 5  # images: with two or three processes, parts of different sizes


def tuner_of(method: str = "apt", **changes: Any) -> Any:
    return TUNERS[method](clip_of(), NAMES, **{**SETTINGS[method], "batch": 4, **changes})


def fit(folder: Path | None, method: str = "apt", resume: bool = False, **changes: Any) -> Any:
    return tuner_of(method, **changes).fit(data(), data(VAL), folder, resume=resume, progress=False)


def prompts_of(folder: Path, name: str = "prompts") -> dict[str, torch.Tensor]:
    return read_tensors(folder / f"{name}.safetensors", "prompts")[0]


def assert_same_run(folder: Path, whole: Path) -> None:
    """Prompts and metrics are those of the run ``whole`` up to rounding, files by name."""
    for name in ("prompts", "best", "last"):
        found, wanted = prompts_of(folder, name), prompts_of(whole, name)
        assert max(relative(found[k], wanted[k]) for k in wanted) < EXACT
    rows, wanted_rows = RunFolder(folder).read_metrics(), RunFolder(whole).read_metrics()
    assert [row.keys() for row in rows] == [row.keys() for row in wanted_rows]
    for row, wanted_row in zip(rows, wanted_rows, strict=True):
        for key in row.keys() - {"seconds", "tuning_seconds"}:
            rounding = 1e-6 if key == "loss" else EXACT  # kept in float32
            exact = key == "epoch" or key.startswith("val")
            assert row[key] == (
                wanted_row[key] if exact else pytest.approx(wanted_row[key], rel=rounding)
            ), key
    files = [{p.relative_to(f) for p in f.rglob("*")} for f in (folder, whole)]
    assert files[0] == files[1]


@functools.cache
def whole(above: Path, method: str = "apt") -> Path:
    fit(above / method, method)
    return above / method


@pytest.fixture(scope="module")
def above(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


def ends_after(epochs: int) -> None:
    """Let this process's tuning end, as if it were killed, after some epochs."""
    finish = RunFolder.append_metrics

    def stopped(run: RunFolder, row: dict[str, Any]) -> None:
        if row["epoch"] > epochs:
            raise KeyboardInterrupt
        finish(run, row)

    RunFolder.append_metrics = stopped  # type: ignore[method-assign]  # in a process of its own


def test_only_the_first_process_writes_and_any_number_resumes(above: Path, tmp_path: Path) -> None:
    wanted, run = whole(above), tmp_path / "run"

    def begin(rank: int) -> None:
        ends_after(1)
        written = []
        if rank:
            RunFolder.write_config = lambda *_: written.append("config")  # type: ignore
            RunFolder.write_state = lambda *_: written.append("state")  # type: ignore
        fit(run, class_shards=2)
        assert not written

    errors = together(2, tmp_path / "two", begin)
    assert errors[0].startswith("KeyboardInterrupt")
    assert errors[1].startswith("RuntimeError")  # its connection to the first one is lost
    assert len(RunFolder(run).read_metrics()) == 1
    assert RunFolder(run).read_config()["processes"] == 2

    def go_on(rank: int) -> None:
        ends_after(2)
        fit(run, resume=True)

    assert together(3, tmp_path / "three", go_on)[0].startswith("KeyboardInterrupt")
    fit(run, resume=True)
    assert_same_run(run, wanted)


@pytest.mark.parametrize("method", ["capt", "advpt"])
def test_a_run_of_three(method: str, above: Path, tmp_path: Path) -> None:
    wanted, run = whole(above, method), tmp_path / "run"

    def tune(rank: int) -> None:
        tuner = fit(run, method, class_shards=3)
        assert tuner.classifier(torch.rand(1, 3, 48, 48, dtype=torch.float64)).shape == (1, 5)
        if method == "advpt":
            fit(None, method, bank_dir=tmp_path / "banks")

    assert together(3, tmp_path / "three", tune) == ["", "", ""]
    assert_same_run(run, wanted)
    for folder in (run / "banks", tmp_path / "banks") if method == "advpt" else ():
        for bank in (wanted / "banks").glob("*.safetensors"):
            found, stored = (read_tensors(f / bank.name, "bank")[0] for f in (folder, bank.parent))
            assert all(torch.equal(found[k], stored[k]) for k in stored)
    loaded = TUNERS[method].load(run, clip_of())
    assert loaded.config.class_shards == 1
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    images = images.double()
    assert (
        relative(
            loaded.classifier(images), TUNERS[method].load(wanted, clip_of()).classifier(images)
        )
        < EXACT
    )


def test_a_bank_is_resumed_and_read(above: Path, tmp_path: Path) -> None:
    """Three processes take over a shard of a stopped run, and a whole bank."""
    from fastprompt.methods import advpt_bank

    wanted, run = whole(above, "advpt"), tmp_path / "run"

    class Stopped(BaseException):
        pass

    real, done = advpt_bank.write_tensors, []

    def stop(path: Path, *rest: Any) -> None:
        if done:
            raise Stopped
        done.append(path)
        real(path, *rest)

    options = {"attack_batch": 1}
    fit(tmp_path / "alone", "advpt", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advpt_bank, "write_tensors", stop)
        with pytest.raises(Stopped):
            fit(run, "advpt", **options)
    attacked: list[int] = []

    def tune(rank: int) -> None:
        rows = advpt_bank._attack_rows

        def counted(clip: Any, data: Any, attack: Any, part: range, *rest: Any) -> Any:
            attacked.extend(part)
            return rows(clip, data, attack, part, *rest)

        advpt_bank._attack_rows = counted  # type: ignore[assignment]
        fit(run, "advpt", resume=True, **options)
        assert not set(attacked) & set(range(4)) or len(attacked) <= 4
        attacked.clear()
        fit(None, "advpt", bank_dir=run / "banks", **options)
        assert not attacked

    assert together(3, tmp_path / "three", tune) == ["", "", ""]
    assert_same_run(run, tmp_path / "alone")
    assert wanted.exists()


def test_early_stopping_is_decided_alike(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    ended.mkdir()

    def tune(rank: int) -> None:
        tuner = tuner_of(epochs=6, patience=1)
        scores = iter([0.5, 0.6, 0.6 + 0.1 * rank, 0.9, 0.9, 0.9])  # they differ by rounding
        tuner.validate = lambda: {"val_robust": next(scores)}
        tuner.fit(data(), data(VAL), None, progress=False)
        (ended / str(rank)).write_text(str(len(list(scores))))

    assert together(2, tmp_path / "two", tune) == ["", ""]
    assert {(ended / str(rank)).read_text() for rank in range(2)} == {"3"}


# ---- refused -----------------------------------------------------------------------------------


def refused(tmp_path: Path, function: Any, count: int = 2) -> str:
    """The message, which is that of all processes."""
    errors = together(count, tmp_path / "ranks", function)
    assert len(set(errors)) == 1
    assert not (tmp_path / "run").exists()
    return errors[0]


def test_more_processes_than_a_batch_has_images(tmp_path: Path) -> None:
    message = refused(tmp_path, lambda rank: fit(tmp_path / "run", batch=2), 3)
    assert message.startswith(
        "ValueError: batch must be at least the number of processes, 3, got 2"
    )


def test_other_settings(tmp_path: Path) -> None:
    message = refused(tmp_path, lambda rank: fit(tmp_path / "run", lr=0.1 + rank))
    assert message.startswith("ValueError: lr must be the same in all processes, got 0.1 in proc")
    assert "1.1 in process 1" in message


def test_other_data(tmp_path: Path) -> None:
    def tune(rank: int) -> None:
        tuner_of().fit(data(9 + rank), data(VAL), tmp_path / "run", progress=False)

    assert "content of train, val and init_from must be the same" in refused(tmp_path, tune)


def test_other_versions(tmp_path: Path) -> None:
    def tune(rank: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(versions, "version", lambda name: f"2.{rank}")
            fit(tmp_path / "run")

    assert "fastprompt must be the same in all processes, got '2.0'" in refused(tmp_path, tune)


def test_batches_that_are_not_those_of_the_process(tmp_path: Path) -> None:
    def tune(rank: int) -> None:
        tuner = tuner_of("advpt")
        tuner.batches = lambda order, epoch: ((4, rows) for rows in order.split(4))
        tuner.fit(data(), None, None, progress=False)

    assert refused(tmp_path, tune).startswith("ValueError: batch must have 2 examples")


@pytest.mark.parametrize("shards", [3, 7])
def test_class_shards(shards: int, tmp_path: Path, small_clip: FrozenCLIP) -> None:
    with pytest.raises(ValueError, match=r"class_shards must be 1 or the number of processes, 1"):
        tuner_of(class_shards=shards)
    message = refused(tmp_path, lambda rank: tuner_of(class_shards=shards))
    assert f"class_shards must be 1 or the number of processes, 2, got {shards}" in message


def test_fewer_classes_than_shards(tmp_path: Path) -> None:
    def make(rank: int) -> None:
        tuner = tuner_of()
        PromptedCLIP(tuner.clip, ["a", "b"], tuner.prompts, class_shards=3)

    assert "class_shards must be at most the number of classes, 2" in refused(tmp_path, make, 3)


def test_a_loss_that_is_not_finite_ends_all(tmp_path: Path) -> None:
    """Each process raises, with the same images, though the loss of one alone is infinite."""

    class Scripted(TUNERS["advpt"]):  # type: ignore[misc]
        def prepare(self, train: Any, *_: Any) -> int:
            return len(train)

        def batches(self, order: Any, epoch: int) -> Any:
            return Tuner.batches(self, order, epoch)

        def loss(self, batch: torch.Tensor) -> torch.Tensor:
            bad = torch.where(batch == 3, torch.inf, 0.0).sum()
            return self.prompts.tokens.mean() + bad

        def validate(self) -> dict[str, float]:
            return {}

    def tune(rank: int) -> None:
        tuner = Scripted(clip_of(), NAMES, {**SETTINGS["advpt"], "batch": 4})
        tuner.fit(data(), None, None, progress=False)

    assert refused(tmp_path, tune).startswith("FloatingPointError: the loss became inf in step")
