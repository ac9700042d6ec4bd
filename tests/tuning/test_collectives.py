"""What the processes send in an optimizer step: as docs/guides/many_devices.md says."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.method_checks import NAMES, SETTINGS, clip_of, data
from helpers.ranks import together
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.loop import Loop

CALLS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier")
COUNT, BATCH, WIDTH, MIXED = 2, 3, 16, 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "advpt": ("advpt", {}),
    "apt": ("apt", {}),
    "coop": ("coop", {}),
    "ampt": ("ampt", {}),
    "ampt-balanced": ("ampt", {"load_balance": 0.7, "clean_share": 0.3}),
    "capt": ("capt", {"balance": "constant"}),
    "capt-confidence": ("capt", {"balance": "confidence"}),
    "nap": ("nap", {"schedule": "fixed"}),
    "nap-refiners": ("nap", {"schedule": "fixed", "text_refiners": True}),
    "apt-accumulated": ("apt", {"accumulate": 2}),
}
# numbers in the means over the batch, forward and backward
MEANS = {"ampt-balanced": [MIXED, MIXED], "capt-confidence": [1]}
Sent = list[tuple[str, int]]


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """The collectives, and how many numbers this process gives to each."""
    sent: Sent = []

    def watched(name: str) -> Any:
        real = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            # the outputs of these two come first
            given = arguments[1] if name in ("all_gather", "reduce_scatter") else arguments[0]
            tensors = given if isinstance(given, list) else [given]
            sent.append((name, sum(tensor.numel() for tensor in tensors)))
            return real(*arguments, **options)

        return call

    for name in CALLS:
        patch.setattr(dist, name, watched(name))
    yield sent


def steps(case: str, shards: int) -> tuple[list[Sent], int]:
    """What is sent before each of three optimizer steps, and the number of parameters."""
    method, own = CASES[case]
    settings = {**SETTINGS.get(method, SETTINGS["apt"]), "epochs": 1, "warmup_epochs": 0, **own}
    tuner: Any = TUNERS[method](
        *(clip_of(torch.float32), NAMES), **{**settings, "batch": BATCH, "class_shards": shards}
    )
    examples = tuner.prepare(data(18 if "accumulate" in own else 9), None, None, False)
    found: list[Sent] = []
    with pytest.MonkeyPatch.context() as patch, counted(patch) as sent:

        def keep(*_: Any) -> None:
            found.append(sent.copy())
            sent.clear()

        loop = Loop(tuner, None, "", examples, None, False)
        loop._finish = lambda *_: None
        sent.clear()
        hook = register_optimizer_step_pre_hook(keep)
        try:
            loop.run()
        finally:
            hook.remove()
    return found, sum(p.numel() for p in tuner.prompts.parameters())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")

    def each(rank: int) -> None:
        out = {f"{case} {shards}": steps(case, shards) for case in CASES for shards in (1, COUNT)}
        (folder / f"{rank}.json").write_text(json.dumps(out))

    clip_of(torch.float32), data()  # before the processes fork
    errors = together(COUNT, folder / "store", each)
    assert not any(errors), errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(COUNT)]


@pytest.mark.parametrize("shards", [1, COUNT])
@pytest.mark.parametrize("case", CASES)
def test_one_all_reduce_per_step(found: Any, case: str, shards: int) -> None:
    for rank in found:
        sent, parameters = rank[f"{case} {shards}"]
        batches = CASES[case][1].get("accumulate", 1)
        # beside the gradients, the loss of each batch
        wanted = [["all_reduce", parameters + batches]]
        wanted += [["all_reduce", n] for n in MEANS.get(case, []) * batches]
        if shards > 1:
            # the features of the largest part, and the gradients of all parts
            prompts = MIXED if case.startswith("ampt") else 1
            most = -(-len(NAMES) // COUNT)
            wanted += [["all_gather", most * prompts * WIDTH]] * batches
            wanted += [["reduce_scatter", COUNT * most * prompts * WIDTH]] * batches
        assert len(sent) == 3
        first, *later = sent
        for step in later:
            assert sorted(step) == sorted(wanted)
            assert step[-1] == wanted[0]  # after the backward pass
        # what is prepared once precedes it
        assert all(each in first for each in wanted)
