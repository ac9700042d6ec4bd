"""The models on which attacks search: the evaluated models, or their twins in another precision."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._utils.checks import check_choice
from .._utils.dtypes import (
    PRECISIONS,
    at_least_float32,
    check_precision,
    multiplies_bf16,
    own_precision,
)
from .._utils.types import Model
from ..data.dataset import evenly
from ..defenses import Defended
from .sampling import Images, random_numbers
from .sanity.sample import difference
from .scoring import logits_of

SearchPrecision = Literal["auto", "own", "fp64", "fp32", "bf16", "fp16"]
_PROBED = 8  # images on which a twin is compared with its model
# of the logits' spread over the classes; bfloat16 changes the bundled models' by less than 0.01
_APART = 0.5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Searched:
    """A model, and the model on which attacks search in its place.

    Attributes:
        model: the model whose predictions count.
        twin: the same classifier in another precision; None to search on the model itself.
        precision: precision of the twin, ``"own"`` without one.
        own: precision of the model.
        confirm: whether images that stand after a search on the twin are attacked again on the
            model. False for a randomized model: of its two random predictions, either would count.
        direct: whether the confirming part of an attack runs on the model only, without a search on
            the twin before it.
    """

    model: Model
    twin: Model | None = None
    precision: str = "own"
    own: str = ""
    confirm: bool = False
    direct: bool = False


def check_search(precision: str, device: torch.device) -> None:
    """Raise ValueError if ``search_precision`` is unknown, or the device does not support it."""
    check_choice(precision, "search_precision", get_args(SearchPrecision))
    if precision in PRECISIONS:
        try:
            check_precision(precision, device)
        except ValueError as error:
            raise ValueError(f"search_{error}") from None


def confirms_directly(confirm: bool, device: torch.device) -> bool:
    """Whether, by default, the confirming part of an attack runs on the model only.

    On a CPU, a search in bfloat16 before it rarely pays: images that stand take all steps in both.
    """
    return confirm and device.type == "cpu"


def search_targets(
    models: Mapping[str, Model],
    surrogates: Mapping[str, Model],
    precision: str,
    confirm: bool,
    images: Images,
) -> tuple[dict[str, Searched], dict[str, Searched]]:
    """Return models and surrogates by name, as `searched` does; equal objects share a twin."""
    known: dict[int, Searched] = {}

    def target(what: str, model: Model) -> Searched:
        if id(model) not in known:
            known[id(model)] = searched(model, what, precision, confirm, images)
        return known[id(model)]

    return (
        {name: target(f"model {name!r}", model) for name, model in models.items()},
        {name: target(f"surrogate {name!r}", model) for name, model in surrogates.items()},
    )


def search_facts(
    models: Mapping[str, Searched], surrogates: Mapping[str, Searched]
) -> dict[str, Any]:
    """Return the precisions of the search; empty if attacks search on the models themselves."""
    every = {**{f"@{name}": target for name, target in surrogates.items()}, **models}
    twins = {name: target for name, target in every.items() if target.twin is not None}
    if not twins:
        return {}
    return {
        "search_precision": {name: target.precision for name, target in twins.items()},
        "confirm": any(target.confirm for target in twins.values()),
        **({"direct": True} if any(target.direct for target in twins.values()) else {}),
    }


def searched(model: Model, what: str, precision: str, confirm: bool, images: Images) -> Searched:
    """Return the model with its twin in the precision of the search.

    Args:
        model: maps pixels to logits; neither changed nor moved.
        what: what the model is, for errors, such as ``"model 'tuned'"``.
        precision: ``"auto"``: bfloat16 for a deterministic float32 classifier that has
            ``in_precision``, on a device that multiplies bfloat16 natively; ``"own"``; or a
            precision to which any module is converted.
        confirm: whether surviving images are attacked again.
        images: some of them are classified by both.

    Raises:
        ValueError: a precision is given, but the model has no twin in it.
    """
    own, auto = _own_precision(model), precision == "auto"
    random = bool(getattr(model, "randomized", False))
    if auto:
        offered = own == "fp32" and hasattr(model, "in_precision") and not random
        precision = "bf16" if offered and multiplies_bf16(images.device) else "own"
    if precision in ("own", own):
        return Searched(model)
    pixels, want = _classified(model, images)
    try:
        twin = _twin(model, precision)
        _compare(want, _logits(twin, pixels), random)
    except Exception as error:  # whatever a module raises when it is copied, converted or called
        reason = " ".join(f"{error or type(error).__name__}".split())
        if auto:
            log.warning("%s is attacked in its own precision: %s", what, reason)
            return Searched(model)
        raise ValueError(
            f"search_precision must be 'auto' or 'own' for {what}, got {precision!r}, to which it "
            f"cannot be converted: {reason}"
        ) from error
    direct = auto and confirms_directly(confirm, images.device)
    return Searched(model, twin, precision, own, confirm=confirm and not random, direct=direct)


def _own_precision(model: Any) -> str:
    """Return the precision of a model that reports it, or of a module's tensors; "" if mixed."""
    if type(model) is Defended:
        return _own_precision(model.classifier)
    if hasattr(model, "in_precision"):
        return str(getattr(model, "precision", ""))
    if not isinstance(model, nn.Module):
        return ""
    kinds = {t.dtype for t in _tensors(model) if t.is_floating_point()} or {torch.float32}
    return own_precision(*kinds) if len(kinds) == 1 and kinds < set(PRECISIONS.values()) else ""


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _twin(model: Any, precision: str) -> Model:
    """Return the same classifier in another precision; defenses keep theirs."""
    if type(model) is Defended:
        return Defended(_twin(model.classifier, precision), *model.defenses)
    if hasattr(model, "in_precision"):
        twin: Model = model.in_precision(precision)
        if type(twin) is not type(model):  # a subclass may compute something else
            raise TypeError(
                f"its in_precision returns a {type(twin).__name__}, not a {type(model).__name__}"
            )
        return twin
    if not isinstance(model, nn.Module):
        raise TypeError("it is a function; only a torch.nn.Module has weights to convert")
    return _Converted(model, PRECISIONS[precision])


class _Converted(nn.Module):
    """A copy of a module in another precision, from pixels to logits of at least float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        twin = copy.deepcopy(module)
        if {*map(id, _tensors(twin))} & {*map(id, _tensors(module))}:
            raise TypeError("its copy shares weights with it")
        self.twin, self.dtype = twin.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        return at_least_float32(self.twin(images.to(self.dtype)))


def _classified(model: Model, images: Images) -> tuple[Tensor, Tensor]:
    """Return some images and the model's logits."""
    places = evenly(_PROBED, len(images.rows))
    ((_, pixels, _),) = images.read(places, len(places))
    return pixels, _logits(model, pixels)


def _logits(model: Model, pixels: Tensor) -> Tensor:
    with random_numbers(0, ("search",), pixels.device):
        return logits_of(model, pixels)


def _compare(want: Tensor, got: Tensor, random: bool) -> None:
    """Raise ValueError unless a twin's logits are about those of its model."""
    if got.shape != want.shape:
        raise ValueError(f"its logits are {list(got.shape)} instead of {list(want.shape)}")
    if not bool(got.isfinite().all()) and bool(want.isfinite().all()):
        raise ValueError("its logits are no longer finite")
    apart = difference(want.double(), got.double())
    if apart > _APART and not random:
        raise ValueError(f"its logits change by {apart:.0%} of their spread over the classes")
