"""The plan of a protocol, checked before anything is tuned or written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from .._utils.checks import (
    MOST_WORKERS,
    Fraction,
    check_choice,
    check_count,
    check_path,
    check_seed,
    check_text,
    first_difference,
    shown,
    some,
)
from .._utils.names import unknown
from ..clip import bundled
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip
from ..data.coop import OWN_SPLITS
from ..data.few_shot import Classes
from ..data.find import BUILTIN
from ..data.load import Data, load_recorded
from ..evaluation.job import Sanity
from ..evaluation.plan import plan_attacks, split_names
from ..methods.registry import TUNERS
from ..tuning.config import TunerConfig, as_dict, build, field_names
from .cells import PROTOCOLS, ZERO_SHOT, Cell, Protocol, Shots, cells_of, labels_of
from .scoring import check_scoring, judging, radii_of

EVERY = "all"  # the settings of all methods
METHODS = (ZERO_SHOT, *TUNERS)


@dataclass(frozen=True)
class Plan:
    """The plan of a protocol.

    Attributes:
        facts: what identifies it, for JSON.
        clip: the model.
        sets: the data sets by name.
        configs: the settings of each method that is tuned.
        cells: the runs.
    """

    facts: dict[str, Any]
    clip: FrozenCLIP
    sets: dict[str, Data]
    configs: dict[str, TunerConfig]
    cells: tuple[Cell, ...]

    @property
    def protocol(self) -> Protocol:
        """The protocol."""
        return PROTOCOLS[self.facts["protocol"]]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Short names of the data sets."""
        return labels_of(list(self.sets))

    def judging(self, method: str) -> tuple[list[str], list[str]]:
        """Return the attacks and radii under which a method is judged."""
        return judging(method, self.facts)

    def config_of(self, cell: Cell) -> TunerConfig:
        """Return the settings of a tuned cell; the published ones depend on its shots."""
        config, shots = self.configs[cell.method], cell.shots
        assert shots is not None
        own = _given(cell.method, self.facts)
        changes = config.published_at(shots) if own.get("published") else {}
        return replace(config, **{k: v for k, v in changes.items() if k not in own})

    def load(self, name: str, classes: Classes = "all", **draw: Any) -> Data:
        """Load images of a data set for the model."""
        return load_recorded(_source(name, self.facts), classes=classes, **draw).for_model(
            self.clip
        )

    @cached_property
    def notes(self) -> list[str]:
        """What is to be known of the numbers, one line each.

        Data sets with other splits than CoOp's, methods that are tuned at another radius than those
        of the evaluation, and numbers of shots that some classes do not have.
        """
        out = [
            f"{self.labels[name]}: {data.splits}"
            for name, data in self.sets.items()
            if data.splits not in (None, OWN_SPLITS)
        ]
        for method, config in self.configs.items():
            radii = self.judging(method)[1]
            own = radii_of([getattr(config, "eps", 0)], "eps")[0]
            if TUNERS[method].attacks_images and own not in radii:
                out.append(f"{method} is tuned at {own} and judged at {', '.join(radii)}")
        for name in dict.fromkeys(cell.data for cell in self.cells if cell.tuned):
            data = self.sets[name]
            counts = dict(zip(data.classnames, data.counts("train"), strict=True))
            for shots in self.facts["shots"]:
                few = [f"{c} ({n})" for c, n in counts.items() if shots != "all" and n < shots]
                if few:
                    out.append(
                        f"{self.labels[name]}: {len(few)} classes have fewer than {shots} training "
                        f"images, of which all are taken, as by CoOp: {some(few)}"
                    )
        return out


def make_plan(
    protocol: str,
    methods: str | Sequence[str] = ("zero-shot", "coop", "apt"),
    data: str | Sequence[str] = (),
    *,
    clip: FrozenCLIP | str = bundled.DEFAULT,
    root: str | Path | None = None,
    shots: Sequence[Shots] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    eps: Fraction | None = None,
    attacks: str | Sequence[str] | None = None,
    eval_eps: Fraction | Sequence[Fraction] | None = None,
    limit: int | None = None,
    batch: int = 100,
    workers: int = 0,
    scoring: str = "strict",
    sanity: Sanity = "quick",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    directory: str | Path | None = None,
) -> Plan:
    """Plan a protocol: a cell for each method, data set, number of shots and seed.

    Args:
        protocol: ``"few-shot"``, ``"base-to-new"``, ``"cross-dataset"`` or ``"domain-shift"``.
        methods: ``"zero-shot"`` and tuning methods; ``"coop"`` is tuned on clean images.
        data: names or folders for `load_data`. ``"cross-dataset"`` and ``"domain-shift"`` tune on
            the first one.
        clip: a model, or its name.
        root: the root directory of the data sets, see `load_data`.
        shots: training images per class, or ``"all"``. By default 16; for ``"few-shot"`` 1, 2, 4,
            8, 16 and ``"all"``.
        seeds: each sets the few-shot draw and the tuning.
        eps: radius of tuning of all methods; by default that of each.
        attacks: attacks of the evaluation, by default ``"pgd-20"``, or those of ``scoring``.
        eval_eps: radii of the evaluation, by default those of ``scoring``, then ``eps``, then
            4/255.
        limit: number of test images, drawn by seed 0; None for all.
        batch: number of images attacked at once.
        workers: processes that decode images, in tuning, unless a method's settings have another
            number, and in evaluation; 0 decodes in the main process.
        scoring: ``"strict"``; ``"published"``, by which each method is judged as its paper does; or
            ``"published:PAPER"``, by which all are judged as one paper does (``nap``, ``fap``,
            ``tapt``, ``advpt``). See `evaluate`.
        sanity: see `evaluate`.
        settings: settings by method; those of ``"all"`` are of all methods. ``published=True``
            stands for the settings of the authors' code, for CoOp with its number of epochs at the
            cell's shots.
        directory: the folder of relative paths, by default the working directory.

    Raises:
        ValueError: an argument is unknown or out of range; ``data`` has no second set and the
            protocol needs one; for ``"domain-shift"``, sets have other classes; the model does not
            support a method.
        FileNotFoundError: a data set is missing.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", str(protocol), PROTOCOLS)
    kind = PROTOCOLS[protocol]
    names, sources = split_names(methods), split_names(data)
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    if not names:
        raise ValueError("methods must not be empty")
    if not sources:
        raise ValueError("data must not be empty")
    if kind.single and len(sources) < 2:
        raise ValueError(
            f"data must have a second set for {protocol}, which is {kind.about}; got only "
            f"{sources[0]!r}"
        )
    check_choice(sanity, "sanity", get_args(Sanity))
    facts: dict[str, Any] = {
        "protocol": protocol,
        "methods": names,
        "data": sources,
        "root": None if root is None else str(check_path(root, "root")),
        "shots": _checked_shots(kind.shots if shots is None else shots),
        "seeds": _checked_seeds(seeds),
        "eps": None if eps is None else radii_of([eps], "eps")[0],
        "attacks": None if attacks is None else split_names(attacks),
        "eval_eps": None if eval_eps is None else radii_of(eval_eps, "eval_eps"),
        "limit": None if limit is None else check_count(limit, "limit"),
        "batch": check_count(batch, "batch"),
        "scoring": check_scoring(scoring),
        "sanity": sanity,
        "settings": {key: dict(own) for key, own in (settings or {}).items()},
        "directory": str(Path.cwd() if directory is None else directory),
    }
    if check_count(workers, "workers", least=0, most=MOST_WORKERS):  # plans without stay equal
        facts["workers"] = workers
    for name in names:
        plan_attacks(*judging(name, facts))
    sets = {name: load_recorded(_source(name, facts)) for name in sources}
    clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
    own = {"name": clip.name, "source": clip.source, "fingerprint": clip.fingerprint}
    facts |= {"clip": own, "device": str(clip.device)}
    if presets := {name: dict(preset) for name in names if (preset := _preset(name, clip))}:
        facts["presets"] = presets  # another version's may differ
    drawn = facts["shots"], facts["seeds"]
    facts["contents"] = {name: each.contents(*drawn) for name, each in sets.items()}
    configs = _configs(facts, clip)
    _check_classes(protocol, list(sets.values()), configs)
    _check_patience(list(sets.values())[: 1 if kind.single else None], configs)
    cells = cells_of(kind, names, labels_of(sources), facts["shots"], facts["seeds"])
    sets = {name: each.for_model(clip) for name, each in sets.items()}
    return Plan(facts, clip, sets, configs, tuple(cells))


def _source(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    where = {} if name in BUILTIN else {"directory": facts["directory"]}
    return {"name": name, "root": facts["root"], **where}


def _checked_shots(shots: Sequence[Shots]) -> list[Shots]:
    if isinstance(shots, str) or not isinstance(shots, Sequence) or not shots:
        raise ValueError(f"shots must be a list of numbers or 'all', got {shown(shots)}")
    return list(dict.fromkeys(s if s == "all" else check_count(s, "shots") for s in shots))


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    found = [check_seed(seed, "seeds") for seed in seeds]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be distinct, and at least one, got {shown(found)}")
    return found


def _configs(facts: Mapping[str, Any], clip: FrozenCLIP) -> dict[str, TunerConfig]:
    """Return the settings of each method; raise if one is invalid or the model has no support."""
    given, methods = facts["settings"], [m for m in facts["methods"] if m != ZERO_SHOT]
    for key in given:
        if check_text(key, "settings") not in (EVERY, *TUNERS):
            raise unknown("method in settings", key, (EVERY, *TUNERS))
    out = {}
    for method in methods:
        kind = TUNERS[method]
        if reason := kind.unfit(clip):
            raise ValueError(f"methods: {method} does not support {clip.name}: {reason}")
        own = _given(method, facts)
        if "seed" in own:
            raise ValueError("settings: the protocol sets the seed of each run; drop seed")
        if facts["eps"] is not None:
            own.setdefault("eps", facts["eps"])
        if "workers" in facts and "workers" in field_names(kind.Config):
            own.setdefault("workers", facts["workers"])
        preset = _preset(method, clip)
        if own.pop("published", False):
            preset = as_dict(kind.Config.published())
        out[method] = build(kind.Config, preset, own, {})
    return out


def _preset(method: str, clip: FrozenCLIP) -> Mapping[str, Any]:
    kind = TUNERS.get(method)
    return kind.presets.get((clip.source or {}).get("model", ""), {}) if kind else {}


def _given(method: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the user gives for a method."""
    given = facts["settings"]
    return {**given.get(EVERY, {}), **given.get(method, {})}


def _check_classes(protocol: str, sets: Sequence[Data], configs: Mapping[str, TunerConfig]) -> None:
    specific = [method for method, config in configs.items() if config.class_specific]
    other = any(data.classnames != sets[0].classnames for data in sets[1:])
    fixed = protocol in ("base-to-new", "cross-dataset") or (protocol == "domain-shift" and other)
    if specific and fixed:
        raise ValueError(
            f"settings: {specific[0]} has class-specific contexts, and {protocol} judges on other "
            "classes, for which there are none; set class_specific=False"
        )
    if protocol == "domain-shift":
        _check_shifted(sets)


def _check_patience(sets: Sequence[Data], configs: Mapping[str, TunerConfig]) -> None:
    """Raise if a method waits for validation images that a data set of tuning does not have."""
    patient = [method for method, config in configs.items() if config.patience is not None]
    for data in sets:
        if patient and data.val_is_test:
            raise ValueError(
                f"settings: patience of {patient[0]} needs validation images, and those of "
                f"{data.name} are its test images; drop patience"
            )


def _check_shifted(sets: Sequence[Data]) -> None:
    first, *shifted = sets
    for data in shifted:
        wanted = first.classnames
        if first.mask is not None and data.mask is not None and {*data.mask} <= {*first.mask}:
            wanted = [first.classnames[first.mask.index(label)] for label in data.mask]
        if data.classnames != wanted:
            raise ValueError(
                f"data: {data.name} has other classes than {first.name}: "
                f"{first_difference(data.classnames, wanted)}; domain-shift needs the same classes "
                "in the same order, cross-dataset takes others"
            )
