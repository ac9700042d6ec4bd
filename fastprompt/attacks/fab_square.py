"""FAB and Square from `torchattacks`, with the interface of this library's attacks."""

import importlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import MOST_STEPS, Fraction, check_count, check_seed, parse_fraction
from .._utils.gradients import without_gradients
from .._utils.seeds import numbered_seed
from .._utils.types import Model
from .base import Attack, Batch, wrong_classes
from .result import AttackResult, untouched

_SLACK = 1e-6  # tolerance for rounding in the projections of torchattacks


def torchattacks() -> Any:
    """Import and return the `torchattacks` package.

    Raises:
        ModuleNotFoundError: it is not installed; the message gives the install command.
    """
    try:
        return importlib.import_module("torchattacks")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FAB, Square and AutoAttack require torchattacks; "
            "install it with: pip install 'fastprompt[eval]'"
        ) from error


class _Module(nn.Module):
    """Wraps any callable as a module in eval mode, which `torchattacks` requires."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.call = model
        # torchattacks reads the device from the first parameter and prints a notice without one
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        # Square modifies the logits in place
        return self.call(images).clone()


class _Peer(Attack):
    """Base class of attacks that run `torchattacks` on each batch with separate random numbers."""

    def __init__(self, model: Model, eps: Fraction, batch: int | None) -> None:
        super().__init__(model, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        torchattacks()

    @abstractmethod
    def _tries(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return T candidate adversarial images for each image, ``[T, B, C, H, W]``."""

    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        parts = [self._part(part) for part in batch.split(self._size(batch.images))]
        return AttackResult.join(parts) if len(parts) > 1 else parts[0]

    def _part(self, batch: Batch) -> AttackResult:
        adv = batch.images
        success = self.won(adv, batch.labels)
        if not len(batch):
            return untouched(adv, success)
        # torchattacks calls ``backward``, which must not accumulate parameter gradients
        with _own_random_numbers(adv), without_gradients(self.model):
            tries = self._tries(_Module(self.model), batch).detach()
        for tried in tries:
            # NaN pixels compare as False
            inside = (tried - batch.images).abs().flatten(1).amax(1) <= self.eps + _SLACK
            fresh = inside & ~success & self.won(tried, batch.labels)
            adv = torch.where(fresh[:, None, None, None], tried, adv)
            success = success | fresh
        # torchattacks does not expose its gradients, so the health is empty
        return untouched(adv, success)


class FAB(_Peer):
    """Targeted FAB: seeks the nearest point across the boundary to each of several wrong classes.

    Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    ICML 2020. All targets of an image are attacked in one batch: few images remain when FAB runs
    in AutoAttack, and small batches underuse the hardware.

    Args:
        model, eps, batch: as for `PGD`; ``batch`` counts images times targets.
        steps: steps per target.
        targets: number of wrong classes attacked, the most likely first.
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
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        self.targets = check_count(targets, "targets", most=MOST_STEPS)

    def _size(self, images: Tensor) -> int:
        return max(1, super()._size(images) // self.targets)

    def _tries(self, model: nn.Module, batch: Batch) -> Tensor:
        x, n = batch.images, len(batch)
        wrong = wrong_classes(model, x, batch.labels)[:, : self.targets].T  # [T, B]
        attack = torchattacks().FAB(model, norm="Linf", eps=self.eps, steps=self.steps)
        attack.set_device(x.device)
        # torchattacks expects one target class; a tensor gives each row a separate target
        attack.target_class = wrong.flatten()
        labels = batch.labels.repeat(len(wrong))
        adv = attack.attack_single_run_targeted(x.repeat(len(wrong), 1, 1, 1), labels)
        return adv.view(len(wrong), n, *x.shape[1:])


class Square(_Peer):
    """Square: gradient-free random search with square perturbations.

    As in the authors' version, all images of a batch share the positions of the squares, and random
    numbers are drawn for the whole batch. An image's result thus depends on its batch.

    Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random
    search", ECCV 2020.

    Args:
        model, eps, batch: as for `PGD`.
        queries: maximum number of passes per image.
        seed: seed of the squares.
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
        self.queries = check_count(queries, "queries", most=MOST_STEPS)
        self.seed = check_seed(seed)

    def _tries(self, model: nn.Module, batch: Batch) -> Tensor:
        # a separate seed for each batch
        seed = numbered_seed(self.seed, int(batch.indices[0])) % 2**31
        attack = torchattacks().Square(
            model, norm="Linf", eps=self.eps, n_queries=self.queries, seed=seed
        )
        attack.set_device(batch.images.device)
        return attack(batch.images, batch.labels)[None]


@contextmanager
def _own_random_numbers(x: Tensor) -> Iterator[None]:
    """Restore torch's global generator on exit, since torchattacks seeds it."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
