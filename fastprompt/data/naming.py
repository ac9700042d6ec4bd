"""Class names and prompt templates that the user gives, as values or as files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from .._utils.checks import HOMONYMS, check_classnames, check_templates, some

ClassNames: TypeAlias = Mapping[str, str] | Sequence[str] | str | Path
Templates: TypeAlias = Sequence[str] | str | Path


def class_names(folders: Sequence[str], given: ClassNames | None) -> list[str]:
    """Return a name for each class of a data set.

    Args:
        folders: the data set's own names: those of the class folders.
        given: a mapping from these to class names; a list of class names in the same order; a JSON
            or YAML file of one of both; or a text file with a class name per line, in the same
            order, or with lines of a folder's name and its class name, as CoOp's. None keeps
            the data set's own names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a class has no name, a name has no class, or two classes have the same name; the
            message shows the first. Or the file is neither of these.
        TypeError: ``given`` is neither of these.
    """
    if given is None:
        return check_classnames(folders)
    where = f"classnames: {given}" if isinstance(given, (str, Path)) else "classnames"
    if isinstance(given, (str, Path)):
        given = _read(Path(given), folders)
    if isinstance(given, Mapping):
        missing = [folder for folder in folders if folder not in given]
        unknown = [str(name) for name in given if name not in set(folders)]
        if missing or unknown:
            raise ValueError(
                f"{where} must name each of the {len(folders)} classes once"
                + (f"; {len(missing)} have no name: {some(missing)}" if missing else "")
                + (f"; {len(unknown)} are not classes: {some(unknown)}" if unknown else "")
                + f"; the classes are {some(folders)}"
            )
        given = [given[folder] for folder in folders]
    if not isinstance(given, Sequence):
        raise TypeError(f"{where} must be a mapping, a list or a file, got {given!r}")
    if len(given) != len(folders):
        raise ValueError(
            f"{where} has {len(given)} names for {len(folders)} classes: {some(given)} for "
            f"{some(folders)}"
        )
    try:
        return check_classnames(given)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}: {error}") from None


def templates_of(given: Templates) -> tuple[str, ...]:
    """Return templates that are given as a list, as one template, or as a file with one per line.

    Raises:
        FileNotFoundError: a string without ``{}`` is not the name of a file.
        ValueError: a template does not have exactly one ``{}``.
    """
    if isinstance(given, Path) or (isinstance(given, str) and "{}" not in given):
        return tuple(check_templates(_lines(_existing(Path(given), "templates"), "templates")))
    return tuple(check_templates(given))


def listed_names(path: Path) -> list[str]:
    """Read the class names of a text file with one per line, in the order of the labels."""
    return check_classnames(_lines(_existing(path, "classnames"), "classnames"))


def class_file(path: Path, name: str) -> list[str]:
    """Read the class names of a text file with one per line, for prompts of other classes.

    Args:
        name: the argument, for messages.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no UTF-8 text, has fewer than two names, or has a name twice; the
            message has the numbers of the lines, from 1.
    """
    try:
        lines = _existing(path, name).read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {path} is not a UTF-8 text file") from None
    seen: dict[str, int] = {}
    names = []
    for number, line in enumerate(lines, 1):
        spoken = line.strip().replace("_", " ")
        if spoken in seen and spoken not in HOMONYMS:
            raise ValueError(
                f"{name}: {path}, line {number}: {spoken!r} is in line {seen[spoken]} already; "
                "remove one of them"
            )
        if spoken:
            seen[spoken] = number
            names.append(spoken)
    if len(names) < 2:
        found = f"has only the name {names[0]!r}" if names else "is empty"
        raise ValueError(f"{name}: {path} {found}; give at least two class names, one per line")
    return check_classnames(names)


def _read(path: Path, folders: Sequence[str]) -> Mapping[str, str] | Sequence[str]:
    _existing(path, "classnames")
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _mapping(path)
    lines = _lines(path, "classnames")
    pairs = [tuple(line.split(maxsplit=1)) for line in lines]
    known = [pair for pair in pairs if len(pair) == 2 and pair[0] in set(folders)]
    if 2 * len(known) <= len(lines):
        return lines
    _check_distinct([pair[0] for pair in pairs], path)
    return {pair[0]: pair[-1] for pair in pairs}


def _mapping(path: Path) -> Mapping[str, str] | Sequence[str]:
    """Read a JSON or YAML file; in YAML, names such as ``1`` or ``no`` stay strings."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_distinct([name for name, _ in pairs], path)
        return dict(pairs)

    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text, object_pairs_hook=distinct)
        else:
            loader: Any = yaml.BaseLoader(text)
            node = loader.get_single_node()
            if isinstance(node, yaml.MappingNode):
                _check_distinct([key.value for key, _ in node.value], path)
            found = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"classnames: {path} is not valid JSON or YAML: {error}") from None
    if not isinstance(found, (dict, list)):
        raise ValueError(f"classnames: {path} must have a mapping or a list, got {found!r}")
    return found


def _check_distinct(folders: Sequence[str], path: Path) -> None:
    twice = next((name for name in folders if folders.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"classnames: {path} names the class {twice!r} twice; keep one of them")


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        remedy = "; a template needs one '{}'" if name == "templates" else ""
        raise FileNotFoundError(f"{name}: the file {path} does not exist{remedy}")
    return path


def _lines(path: Path, name: str) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {path} is not a UTF-8 text file") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{name}: {path} is empty")
    return lines
