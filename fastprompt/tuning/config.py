"""Settings of a method: one typed dataclass, from keywords, a file or the command line alike."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from jsonargparse import ArgumentError, ArgumentParser

from .._utils.checks import check_choice, check_count, check_number, parse_fraction
from .._utils.names import unknown
from ..towers import Engine

OptimizerName = Literal["sgd", "adamw"]


@dataclasses.dataclass(frozen=True)
class TunerConfig:
    """What every method has.

    Attributes:
        epochs: passes over the training images.
        batch: images in a batch.
        accumulate: batches whose gradients make one optimizer step.
        lr: learning rate at the start of its decay to zero along a cosine.
        warmup_epochs: epochs at the constant rate ``warmup_lr`` before the cosine.
        warmup_lr: that rate.
        optimizer: ``"sgd"`` or ``"adamw"``.
        momentum: of SGD.
        weight_decay: of the optimizer.
        keep: with validation images, which prompts the run ends with: the ``"best"`` on them, or
            the ``"last"``. A run folder keeps both.
        patience: stop when so many epochs brought nothing better on the validation images; by
            default never.
        init_from: a run folder whose tuned prompts are the start values.
        seed: of the prompts' start values, the order of the images, their augmentation and the
            attack's random starts.
        engine: ``"fast"``, or ``"reference"``: the same mathematics by open_clip's own modules,
            as published code runs them.
        precision: ``"fp64"``, ``"fp32"``, ``"bf16"`` or ``"fp16"`` in the towers; by default bf16
            on a GPU that has it, else the weights' own. Logits and losses are float32 at least.
        compile: run the towers through `torch.compile`; by default on a GPU.
        class_chunk: classes whose text features are computed at once, to bound the memory; by
            default a function of the shapes and of the device's memory.
    """

    epochs: int = 100
    batch: int = 32
    accumulate: int = 1
    lr: float = 0.002
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    keep: Literal["best", "last"] = "last"
    patience: int | None = None
    init_from: str | Path | None = None
    seed: int = 0
    engine: Engine = "fast"
    precision: Literal["fp64", "fp32", "bf16", "fp16"] | None = None
    compile: bool | None = None
    class_chunk: int | None = None

    @property
    def class_specific(self) -> bool:
        """Whether each class has a context of its own: a setting of APT's alone."""
        return False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            check_count(getattr(self, name), name)
        for name in ("warmup_epochs", "seed"):
            check_count(getattr(self, name), name, least=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        check_number(self.lr, "lr", above=0)
        for name in ("warmup_lr", "momentum", "weight_decay"):
            check_number(getattr(self, name), name, low=0)
        for name in ("patience", "class_chunk"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name)
        check_choice(self.optimizer, "optimizer", get_args(OptimizerName))
        check_choice(self.keep, "keep", ("best", "last"))
        if self.init_from is not None:
            # found again from another directory, too
            object.__setattr__(self, "init_from", str(Path(self.init_from).resolve()))


def parse_distances(config: TunerConfig, *names: str, zero: Sequence[str] = ()) -> None:
    """Distances in pixel units become floats, however they were given: ``"4/255"``, say.

    Args:
        names: of the settings; None is left alone where it is the default.
        zero: those of them that may be 0.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        value = getattr(config, name)
        if value is not None or defaults[name] is not None:
            object.__setattr__(config, name, parse_fraction(value, name, zero=name in zero))


C = TypeVar("C", bound=TunerConfig)


def field_names(cls: type[TunerConfig]) -> list[str]:
    """The settings that ``cls`` has."""
    return [f.name for f in dataclasses.fields(cls)]


def as_dict(config: TunerConfig) -> dict[str, Any]:
    """The settings as plain values, for JSON."""
    return dataclasses.asdict(config)


def parser_for(cls: type[TunerConfig], **options: Any) -> ArgumentParser:
    """A parser whose arguments are the settings of ``cls``."""
    parser = ArgumentParser(exit_on_error=False, **options)
    parser.add_class_arguments(cls)
    return parser


def read_config(cls: type[TunerConfig], path: str | Path) -> dict[str, Any]:
    """The settings that a YAML or JSON file gives, typed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, an unknown key (the nearest are offered) or a value of a wrong type.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"config: there is no file {path}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"config: {path} is not readable YAML or JSON: {why}") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"config: {path} must hold settings by name, got {type(values).__name__}")
    return typed(cls, values)


def typed(cls: type[TunerConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with each converted to its setting's type.

    Raises:
        ValueError: an unknown key (the nearest are offered), or a value of a wrong type.
    """
    known = field_names(cls)
    for key in values:
        if key not in known:
            raise unknown("config key", str(key), known)
    try:
        parsed = parser_for(cls).parse_object(dict(values), defaults=False)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"config: {' '.join(str(error).split())}") from None
    return {key: parsed[key] for key in values}


def build(
    cls: type[C],
    preset: Mapping[str, Any],
    config: C | str | Path | Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> C:
    """The settings, each from the first that names it: keywords, ``config``, preset, defaults.

    A ``config`` that is a whole ``cls`` already leaves the preset out.
    """
    if isinstance(config, cls):
        return dataclasses.replace(config, **typed(cls, overrides))
    if config is None:
        given: dict[str, Any] = {}
    elif isinstance(config, (str, Path)):
        given = read_config(cls, config)
    elif isinstance(config, Mapping):
        given = typed(cls, config)
    else:
        raise TypeError(
            f"config must be a {cls.__name__}, a mapping or a file, got {type(config).__name__}"
        )
    return cls(**{**preset, **given, **typed(cls, overrides)})
