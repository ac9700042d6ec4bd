"""FAB and Square from `torchattacks`, called as the attacks here are."""

import importlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import Fraction, check_count, parse_fraction
from .._utils.gradients import without_gradients
from .._utils.seeds import numbered_seed
from .._utils.types import Model
from .base import Attack, Batch, wrong_classes
from .result import AttackResult, untouched

_SLACK = 1e-6  # rounding of their projections


def torchattacks() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module("torchattacks")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FAB and Square, and AutoAttack with them, need torchattacks: "
            "pip install 'fastprompt[eval]'"
        ) from error


class _Module(nn.Module):
    """What `torchattacks` takes for a model: a module in eval mode, whatever is called."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.call = model
        # they ask the first parameter for the device, and print that there is none
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        # Square writes into the logits that it gets
        return self.call(images).clone()


class _Peer(Attack):
    """An attack of `torchattacks`, batch by batch, each with random numbers of its own."""

    def __init__(self, model: Model, eps: Fraction, batch: int | None) -> None:
        super().__init__(model, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        torchattacks()

    @abstractmethod
    def _tries(self, model: nn.Module, batch: Batch) -> Tensor:
        """What was tried on each image, ``[T, B, 3, H, W]``."""

    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        parts = [self._part(part) for part in batch.split(self._size(batch.images))]
        return AttackResult.join(parts) if len(parts) > 1 else parts[0]

    def _part(self, batch: Batch) -> AttackResult:
        adv = batch.images
        success = self.won(adv, batch.labels)
        if not len(batch):
            return untouched(adv, success)
        # they call ``backward``: no parameter may gather a gradient
        with _own_random_numbers(adv), without_gradients(self.model):
            tries = self._tries(_Module(self.model), batch).detach()
        for tried in tries:
            # false for a NaN, too
            inside = (tried - batch.images).abs().flatten(1).amax(1) <= self.eps + _SLACK
            fresh = inside & ~success & self.won(tried, batch.labels)
            adv = torch.where(fresh[:, None, None, None], tried, adv)
            success = success | fresh
        # they don't show their gradients: there is no health to tell of
        return untouched(adv, success)


class FAB(_Peer):
    """Targeted FAB: for each of several wrong classes the nearest point beyond the boundary.

    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    ICML 2020. All targets of an image are attacked at once: few images stand when its turn comes,
    and a small batch wastes the machine.

    Args:
        model, eps, batch: as for `PGD`; ``batch`` counts images times targets.
        steps: for each target.
        targets: wrong classes that are tried, the likeliest first.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        steps: int = 100,
        *,
        targets: int = 9,
        batch: int | None = None,
    ) -> None:
        super().__init__(model, eps, batch)
        self.steps = check_count(steps, "steps")
        self.targets = check_count(targets, "targets")

    def _size(self, images: Tensor) -> int:
        return max(1, super()._size(images) // self.targets)

    def _tries(self, model: nn.Module, batch: Batch) -> Tensor:
        x, n = batch.images, len(batch)
        wrong = wrong_classes(model, x, batch.labels)[:, : self.targets].T  # [T, B]
        attack = torchattacks().FAB(model, norm="Linf", eps=self.eps, steps=self.steps)
        attack.set_device(x.device)
        # with a tensor of targets for its one target class it takes each row's own
        attack.target_class = wrong.flatten()
        labels = batch.labels.repeat(len(wrong))
        adv = attack.attack_single_run_targeted(x.repeat(len(wrong), 1, 1, 1), labels)
        return adv.view(len(wrong), n, *x.shape[1:])


class Square(_Peer):
    """Square: random search with squares, blind to gradients.

    A batch shares the places of its squares, as the authors have it, and its random numbers are
    drawn for all of it: what an image meets depends on who else is in its batch.

    Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random
    search", ECCV 2020.

    Args:
        model, eps, batch: as for `PGD`.
        queries: passes for each image, at most.
        seed: of the squares.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        queries: int = 5000,
        *,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, eps, batch)
        self.queries = check_count(queries, "queries")
        self.seed = seed

    def _tries(self, model: nn.Module, batch: Batch) -> Tensor:
        # a seed of each batch's own
        seed = numbered_seed(self.seed, int(batch.indices[0])) % 2**31
        attack = torchattacks().Square(
            model, norm="Linf", eps=self.eps, n_queries=self.queries, seed=seed
        )
        attack.set_device(batch.images.device)
        return attack(batch.images, batch.labels)[None]


@contextmanager
def _own_random_numbers(x: Tensor) -> Iterator[None]:
    """They seed torch's global generator: afterwards it is as it was."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
