"""Processes that tune together compute what a single one does: gloo, in float64."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.method_checks import EXACT, NAMES, SETTINGS, clip_of, data, perturb, relative
from helpers.ranks import together
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastprompt.methods.registry import TUNERS
from fastprompt.tuning.loop import Loop

# nine images in batches of 4, 4 and 1: with two or three processes, parts of different sizes, and
# processes without an image of the last batch
STEPS, BATCH = 3, 4
COMMON = {"epochs": 1, "batch": BATCH, "warmup_epochs": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "advpt": ("advpt", {}),
    "apt": ("apt", {"eps_min": "2/255"}),
    "apt-class-specific": ("apt", {"class_specific": True}),
    "apt-accumulate": ("apt", {"accumulate": 2, "drop_last": True}),
    "coop": ("coop", {}),
    "ampt": ("ampt", {"load_balance": 0.7, "clean_share": 0.3}),
    "ampt-raw": ("ampt", {"mix": "raw", "load_balance": 0.2}),
    "capt": ("capt", {"balance": "confidence"}),
    "capt-adv": ("capt", {"balance": "confidence", "ce": "adv", "augment": False}),
    "nap": ("nap", {"schedule": "fixed", "text_refiners": True}),
    "nap-mse": ("nap", {"schedule": "fixed", "consistency": "mse", "accumulate": 3}),
    "nap-clean": ("nap", {"schedule": "linear"}),  # in the first epoch
    "apt-reference": ("apt", {"engine": "reference"}),
    "apt-trades": ("apt", {"objective": "trades"}),
    "apt-targeted": ("apt", {"attack_loss": "targeted-dlr"}),
    "ampt-mixed": ("ampt", {"attack_loss": "mixed"}),
    "apt-exact-crops": ("apt", {"crops": "exact"}),
    "ampt-trades": ("ampt", {"objective": "trades", "clean_share": 0.5, "load_balance": 0.2}),
    "capt-trades": ("capt", {"objective": "trades", "crops": "exact"}),
    "nap-trades": ("nap", {"objective": "trades", "schedule": "fixed", "attack_loss": "mixed"}),
}
SLOW = ("ampt-trades", "capt-trades", "nap-trades")
EACH = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]


def tuner_of(case: str, **changes: Any) -> Any:
    method, own = CASES[case]
    settings = {**SETTINGS.get(method, SETTINGS["apt"]), **COMMON, **own, **changes}
    return TUNERS[method](clip_of(), NAMES, **settings)


def three_steps(case: str, **changes: Any) -> dict[str, torch.Tensor]:
    """The gradients of each step, the prompts after them, and the epoch's metrics."""
    tuner, out = tuner_of(case, **changes), dict[str, torch.Tensor]()
    perturb(tuner.prompts)
    examples = tuner.prepare(data(), data(5), None, False)

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        step = sum(name.startswith("0/") for name in out)
        params = optimizer.param_groups[0]["params"]
        out.update({f"{i}/gradient {step}": p.grad.clone() for i, p in enumerate(params)})

    hook = register_optimizer_step_pre_hook(keep)
    try:
        loop = Loop(tuner, None, "", examples, None, False)
        loop._finish = lambda row, _: out.update(
            {
                f"metric {k}": torch.tensor(v, dtype=torch.float64)
                for k, v in row.items()
                if "seconds" not in k
            }
        )
        loop.run()
    finally:
        hook.remove()
    return out | {f"prompts {k}": v for k, v in tuner.prompts.state_dict().items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each rank gets in each case; those of a method run in the same processes."""
    folder = tmp_path_factory.mktemp("ranks")

    @functools.cache
    def of(method: str, slow: bool, count: int) -> Path:
        cases = [name for name in CASES if CASES[name][0] == method and (name in SLOW) == slow]

        def steps(rank: int) -> None:
            for case in cases:
                for shards in (1, count) if case != "apt-reference" else (1,):
                    found = three_steps(case, class_shards=shards)
                    save_file(found, folder / f"{count}-{case}-{shards}-{rank}.safetensors")

        errors = together(count, folder / f"{count}-{method}-{slow}", steps)
        assert not any(errors), errors
        return folder

    clip_of(), data()  # before the processes fork
    return of


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "class-shards"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", EACH)
def test_gradients_and_prompts(case: str, count: int, sharded: bool, results: Any) -> None:
    if sharded and case == "apt-reference":
        pytest.skip("the reference engine encodes all classes")
    folder = results(CASES[case][0], case in SLOW, count)
    wanted = _alone(case)
    steps = 1 if "accumulate" in CASES[case][1] else STEPS
    assert sum(name.startswith("0/") for name in wanted) == steps
    for rank in range(count):
        file = folder / f"{count}-{case}-{count if sharded else 1}-{rank}.safetensors"
        found = load_file(file)
        assert found.keys() == wanted.keys()
        errors = {
            name: relative(found[name], value) if value.any() else float(found[name].abs().max())
            for name, value in wanted.items()
        }
        worst = max(errors, key=lambda name: errors[name])
        exact = 1e-6 if worst == "metric loss" else EXACT  # kept in float32
        assert errors[worst] <= exact, (worst, errors[worst])


@functools.cache
def _alone(case: str) -> dict[str, torch.Tensor]:
    return three_steps(case)
