"""Translate the yacs configurations of CoOp, AdvPT, APT, MaPLe, FAP and NAP into settings."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .._utils.checks import check_path, shown
from .._utils.names import nearest, unknown
from .._utils.plain_yaml import load_yaml
from ..methods.registry import TUNERS
from ..tuning.config import as_dict, field_names, typed
from .yacs_keys import Found, Refused, Rule, rules_of
from .yacs_prompts import KEYS, SECTIONS, prompts

_LONGEST = 1000  # characters of a text that may stand for a tuple or a number


@dataclass(frozen=True)
class Translation:
    """Settings that a yacs configuration stands for.

    Attributes:
        method: the method.
        settings: settings of the method's config.
        job: options of ``fastprompt tune``: data, model and evaluation.
        lines: what became of each key, one line each.
        base: settings of the authors' code, which hold where the files give none; empty if the
            method has no public code, and its defaults hold.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rest = "the published settings" if self.base else "the defaults"
        return "\n".join([*self.lines, f"all other settings: {rest} of {self.method}"])


def translate_yacs(
    method: str,
    yacs: str | Path,
    trainer: str | Path | None = None,
    *,
    given: Mapping[str, str] | None = None,
) -> Translation:
    """Translate a yacs YAML file of the public codes.

    Radii and step sizes from 1 on are in units of 1/255, those below 0.2 are distances of pixels in
    [0, 1]; the codes use both. No code of the files is run.

    Args:
        method: ``"advpt"``, ``"apt"``, ``"ampt"``, ``"capt"``, ``"coop"`` or ``"nap"``.
        yacs: the file: of the data set, of the trainer, or of both.
        trainer: the file of the trainer; its values replace those of ``yacs``, as in Dassl.
        given: names of settings and options that are set elsewhere, each with what sets it, such as
            ``{"lr": "--lr"}``; keys that these replace are neither translated nor refused.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is not valid YAML, a key is unknown, or a value cannot be expressed (the
            message has the file, the key, its value and the remedy); or the method is unknown, or
            one of another package, which has no translation.
    """
    if method not in TUNERS:
        raise unknown("method", method, TUNERS)
    if method not in SECTIONS:
        raise ValueError(
            f"yacs: the files cannot be translated for {method}, only for {', '.join(SECTIONS)}; "
            "pass its settings as options or in a file with --config"
        )
    values: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for path in (yacs, trainer):
        if path is not None:
            own = _read(check_path(path, "yacs"))
            values |= own
            origin |= dict.fromkeys(own, Path(path))
    return _Translator(method, values, origin, given or {}).run()


def _read(path: Path) -> dict[str, Any]:
    """Return the values of a file by their dotted keys."""
    if not path.is_file():
        raise FileNotFoundError(f"yacs: file {path} does not exist")
    try:
        found = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"yacs: {path} is not valid YAML: {why}") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"yacs: {path} must contain a mapping, got {type(found).__name__}")
    return dict(_flat(found, ""))


def _flat(values: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, _decoded(value)


def _decoded(value: Any) -> Any:
    """Return the Python literal that a text stands for, as yacs does: YAML has no tuples."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


class _Translator:
    """Translates the values of the files for one method."""

    def __init__(
        self,
        method: str,
        values: Mapping[str, Any],
        origin: Mapping[str, Path],
        given: Mapping[str, str],
    ) -> None:
        self.values, self.origin, self.given = values, origin, given
        self.config = TUNERS[method].Config
        self.own = set(field_names(self.config))
        published = vars(self.config).get("_published")
        base = {} if published is None else as_dict(self.config.published())
        self.out = Translation(method, base=base)
        self.refused: dict[str, str] = {}
        self.keys: dict[str, str] = {}  # of the settings

    def run(self) -> Translation:
        rules = rules_of(self.out.method, self.values)
        sections = [f"TRAINER.{name}." for name in SECTIONS[self.out.method]]
        start = next(
            (s for s in sections if any(k.startswith(s) for k in self.values)), sections[0]
        )
        joint = self._prompts(start)
        known = [*rules, *(f"{start}{name}" for name in KEYS)]
        for key, value in self.values.items():
            if key not in joint:
                self._translate(key, value, rules.get(key), known)
        self._check_types()
        if self.refused:
            raise self._error()
        return self.out

    def _check_types(self) -> None:
        """Convert the settings to their types; a parser for each would take seconds."""
        settings = self.out.settings
        try:
            settings.update(typed(self.config, settings))
        except ValueError:
            for name, setting in settings.items():
                try:
                    typed(self.config, {name: setting})
                except ValueError as error:
                    self.refused[self.keys[name]] = f"is refused: {error}".replace("config: ", "")

    def _prompts(self, start: str) -> set[str]:
        """Translate the keys of the prompts, which depend on each other; return these keys."""
        section = {k: v for k, v in self.values.items() if k.startswith(start)}
        found, refused = prompts(
            self.out.method, {k.removeprefix(start): v for k, v in section.items()}, self.given
        )
        for name, result in found.items():
            self._take(f"{start}{name}", section[f"{start}{name}"], result)
        self.refused |= {f"{start}{name}": why for name, why in refused.items()}
        return {f"{start}{name}" for name in (*found, *refused)}

    def _translate(self, key: str, value: Any, rule: Rule | None, known: list[str]) -> None:
        if rule is None:
            self.refused[key] = (
                f"is no known key of {self.out.method}: {nearest(key, known)}; remove it if the "
                "result does not depend on it"
            )
            return
        covering = next((name for name in rule.by if name in self.given), None)
        if covering is not None:
            self._say(key, value, f"overridden by {self.given[covering]}")
            return
        try:
            self._take(key, value, rule.read(value))
        except Refused as why:
            self.refused[key] = str(why)

    def _take(self, key: str, value: Any, found: Found) -> None:
        """Keep the settings of a key that are not set elsewhere."""
        if not found.settings:
            self._say(key, value, found.note)
            return
        said = []
        for name, setting in found.settings.items():
            if name in self.given:
                said.append(f"{name} overridden by {self.given[name]}")
                continue
            said.append(f"{name} = {setting}")
            if name not in self.own:
                self.out.job[name] = setting
                continue
            self.out.settings[name] = setting
            self.keys[name] = key
        note = f" ({found.note})" if found.note else ""
        self._say(key, value, f"{', '.join(said)}{note}")

    def _say(self, key: str, value: Any, what: str) -> None:
        self.out.lines.append(f"{key} = {shown(value)}: {what}")

    def _error(self) -> ValueError:
        (key, why), *others = self.refused.items()
        more = f"; likewise {', '.join(name for name, _ in others)}" if others else ""
        return ValueError(
            f"yacs: {self.origin[key]}: {key} = {shown(self.values[key])} {why}{more}"
        )
