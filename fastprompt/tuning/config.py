"""Settings of a method: a typed dataclass, built from keywords, a file or the command line."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from jsonargparse import ArgumentError, ArgumentParser

from .._utils.checks import (
    MOST,
    MOST_STEPS,
    MOST_TOKENS,
    MOST_WEIGHT,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_path,
    check_seed,
    check_text,
    parse_fraction,
)
from .._utils.dtypes import AUTO, Precision
from .._utils.names import unknown
from .._utils.plain_yaml import check_plain, load_yaml
from ..towers import Engine
from ..towers.template import DEFAULT, parse_template

OptimizerName = Literal["sgd", "adamw"]


@dataclasses.dataclass(frozen=True)
class TunerConfig:
    """Settings of every method.

    Numbers of epochs, steps and batches to accumulate are at most 10**6, numbers of context tokens
    and layers at most 10**4, learning rates, weights of losses and temperatures at most 1e9.

    Attributes:
        epochs: number of passes over the training images.
        batch: images per batch.
        drop_last: drop the last batch of an epoch if it is smaller than ``batch`` and not the only
            one, as the training data loader of Dassl does.
        accumulate: number of batches whose gradients are accumulated for one optimizer step.
        lr: learning rate; it decays to zero along a cosine over all epochs.
        warmup_epochs: number of first epochs at the constant learning rate ``warmup_lr``.
        warmup_lr: learning rate of the warm-up epochs.
        optimizer: ``"sgd"`` or ``"adamw"``.
        momentum: momentum of SGD, in [0, 1].
        weight_decay: weight decay of the optimizer.
        keep: prompts that the run ends with if there are validation images: those of the ``"best"``
            epoch on these images, or of the ``"last"`` epoch. The run folder stores both.
        patience: stop after this many epochs without improvement on the validation images; by
            default never.
        init_from: run folder whose tuned prompts initialize the prompts.
        n_ctx: number of context tokens M; if several layers have prompts, the number per layer. By
            default the number of tokens of ``ctx_init``; without it, 16 (AdvPT: 32, AMPT: 4).
        ctx_init: words whose token embeddings initialize the context, as in CoOp (underscores
            become spaces). If ``n_ctx`` is given, the words are cut to ``n_ctx`` tokens, or tokens
            drawn from N(0, 0.02) follow them. By default all tokens are drawn from it.
        template: positions of the context ``[ctx]``, fixed words and the class name ``{}`` in a
            prompt, such as ``"[ctx] of a {}."``. With two ``[ctx]``, such as ``"[ctx] {} [ctx]."``,
            the context is split into halves. Braces in the text are doubled.
        seed: seed of the prompts' initialization, the order of the images, their augmentation and
            the attack's random starts.
        engine: ``"fast"``, or ``"reference"``, which computes the same function with open_clip's
            modules, as published code does.
        precision: precision of the encoders: ``"fp64"``, ``"fp32"``, ``"bf16"``, ``"fp16"``, or
            ``"auto"``: bf16 for float32 weights where the hardware multiplies it natively (most
            GPUs; CPUs with AVX512-BF16, AMX or Arm's BF16), else the precision of the weights.
            ``config.json`` stores the precision that ran. Logits and losses are at least float32.
        compile: run the encoders through `torch.compile`; by default with the fast engine on a GPU.
        class_chunk: number of classes whose text features are computed at once, which bounds the
            memory; by default it depends on the shapes and the device's memory.
        class_shards: number of processes among which the classes are divided for the text encoder:
            1, or the number of processes that tune together. Each then encodes its share of the
            classes, and all get all class features.
    """

    epochs: int = 100
    batch: int = 32
    drop_last: bool = False
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
    n_ctx: int | None = None
    ctx_init: str | None = None
    template: str = DEFAULT
    seed: int = 0
    engine: Engine = "fast"
    precision: Precision = AUTO
    compile: bool | None = None
    class_chunk: int | None = None
    class_shards: int = 1

    default_n_ctx: ClassVar[int] = 16  # without ctx_init
    _published: ClassVar[Mapping[str, Any]]  # settings of the authors' code, if it is public

    @classmethod
    def published(cls, **overrides: Any) -> Self:
        """Return the settings of the authors' public code, changed by ``overrides``.

        Raises:
            ValueError: the authors have published no code, or an override is unknown or invalid.
        """
        values = vars(cls).get("_published")  # not those of a base class's method
        if values is None:
            name = cls.__name__
            raise ValueError(
                f"{name} has no published settings: the authors have published no code; use the "
                f"defaults, {name}()"
            )
        return cls(**{**values, **typed(cls, overrides)})

    @classmethod
    def published_at(cls, shots: int | Literal["all"]) -> dict[str, Any]:
        """Return settings of the authors' code that differ from `published` at a number of shots.

        By default there are none.
        """
        return {}

    def used(self, examples: int) -> int:
        """Return how many of the training examples an epoch uses; see ``drop_last``."""
        rest = examples % self.batch
        return examples - rest if self.drop_last and rest < examples else examples

    @property
    def class_specific(self) -> bool:
        """Whether each class has a separate context; only APT has this setting."""
        return False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool or (field.type == bool | None and value is not None):
                check_flag(value, field.name)
        for name in ("epochs", "accumulate"):
            check_count(getattr(self, name), name, most=MOST_STEPS)
        check_count(self.batch, "batch")
        check_count(self.class_shards, "class_shards")
        check_count(self.warmup_epochs, "warmup_epochs", least=0, most=MOST_STEPS)
        check_seed(self.seed)
        check_number(self.lr, "lr", above=0, high=MOST_WEIGHT)
        check_number(self.momentum, "momentum", low=0, high=1)
        for name in ("warmup_lr", "weight_decay"):
            check_number(getattr(self, name), name, low=0, high=MOST_WEIGHT)
        for name, most in (("patience", MOST), ("class_chunk", MOST), ("n_ctx", MOST_TOKENS)):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name, most=most)
        check_choice(self.optimizer, "optimizer", get_args(OptimizerName))
        check_choice(self.keep, "keep", ("best", "last"))
        check_choice(self.engine, "engine", get_args(Engine))
        check_choice(self.precision, "precision", get_args(Precision))
        if self.ctx_init is not None:
            check_text(self.ctx_init, "ctx_init")
        parse_template(check_text(self.template, "template"))
        if self.init_from is not None:
            # absolute, so that it stays valid in another working directory
            path = check_path(self.init_from, "init_from").resolve()
            object.__setattr__(self, "init_from", str(path))


def parse_distances(config: TunerConfig, *names: str, zero: Sequence[str] = ()) -> None:
    """Convert distances in pixel units, such as ``"4/255"``, to floats in ``config``.

    Args:
        names: settings to convert; a setting whose default is None may stay None.
        zero: those of the settings that may be 0.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        value = getattr(config, name)
        if value is not None or defaults[name] is not None:
            object.__setattr__(config, name, parse_fraction(value, name, zero=name in zero))


C = TypeVar("C", bound=TunerConfig)


def field_names(cls: type[TunerConfig]) -> list[str]:
    """Return the names of the settings of ``cls``."""
    return [f.name for f in dataclasses.fields(cls)]


def as_dict(config: TunerConfig) -> dict[str, Any]:
    """Return the settings as plain values, for JSON."""
    return dataclasses.asdict(config)


def parser_for(cls: type[TunerConfig], **options: Any) -> ArgumentParser:
    """Return a parser whose arguments are the settings of ``cls``."""
    parser = ArgumentParser(exit_on_error=False, **options)
    parser.add_class_arguments(cls)
    return parser


def read_config(cls: type[TunerConfig], path: str | Path) -> dict[str, Any]:
    """Read the settings in a YAML or JSON file and convert them to their types.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not readable, has an unknown key (the message suggests similar
            ones) or a value of a wrong type.
    """
    import yaml

    if not check_path(path, "config").is_file():
        raise FileNotFoundError(f"config: file {path} does not exist")
    try:
        values = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"config: {path} is not valid YAML or JSON: {why}") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"config: {path} must contain a mapping, got {type(values).__name__}")
    return typed(cls, values)


def typed(cls: type[TunerConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert each of ``values`` to its setting's type.

    Raises:
        ValueError: unknown key (the message suggests similar ones), or a value of a wrong type.
    """
    known = {field.name: field.type for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise unknown("config key", str(key), known)
        check_plain(value, f"config: {key}", known[key])
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
    """Build the settings from ``overrides``, ``config``, ``preset`` and the defaults of ``cls``.

    Earlier sources take precedence. If ``config`` is a ``cls``, the preset is ignored.
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
            f"config must be a {cls.__name__}, a mapping or a path, got {type(config).__name__}"
        )
    return cls(**{**preset, **given, **typed(cls, overrides)})
