"""Settings section of the page: data, models, attacks, tuning, versions."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.result import THREAT_MODEL
from .comparison import path_words, radius
from .runs import Source
from .seeds import Group

Facts = list[tuple[str, str]]


def settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return, for each group, its tuning settings and the settings of its runs' evaluations."""
    return [
        {
            "label": group.label,
            "tuning": _tuning(group),
            "runs": [
                {"name": name or run.name, "evaluations": list(map(_evaluation, run.sources))}
                for run, name in zip(group.runs, group.names, strict=True)
            ],
        }
        for group in groups
    ]


def _tuning(group: Group) -> Facts:
    first = group.runs[0]
    if not first.config:
        return []
    facts = {
        "method": first.method or None,
        "folder": ", ".join(run.name for run in group.runs),
        "model": first.model or None,
        **first.settings,
    }
    if len(group.runs) > 1:
        facts["seed"] = [run.seeds[0] for run in group.runs]
    return [(key, words(value)) for key, value in facts.items() if value is not None]


def _evaluation(source: Source) -> dict[str, Any]:
    found = source.evaluation
    data = found.data
    n = found.rows[0]["n"]
    of = f"{n:,} of {data['of']:,}" if data.get("of") else f"{n:,}"
    facts: Facts = [("threat model", THREAT_MODEL)]
    if data.get("name"):
        facts.append(("data", str(data["name"])))
    if data.get("splits"):
        facts.append(("splits", str(data["splits"])))
    facts.append(("images", of))
    if data.get("classnames"):
        half = f" ({data['classes']})" if data.get("classes") in ("base", "new") else ""
        facts.append(("classes", f"{len(data['classnames']):,}{half}"))
    if data.get("unreadable"):
        facts.append(("unreadable images left out", f"{data['unreadable']:,}"))
    facts += [(key, words(value)) for key, value in found.how.items() if value is not None]
    return {
        "name": source.name or "result",
        "facts": facts,
        "models": [
            (name, [(k, words(v)) for k, v in about.items() if v not in (None, [], "")])
            for name, about in found.models.items()
        ],
        "attacks": _attacks(found.rows),
        "versions": list(found.versions.items()),
    }


def _attacks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List each attack once: all models share its settings, and its costs are summed.

    Precisions, which may differ between models, are listed with the evaluation's other settings.
    """
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["attack"] == "clean":
            continue
        entry = out.setdefault(
            (row["attack"], row["path"], row["eps"]),
            {
                "attack": row["attack"],
                "path": path_words(row["path"]),
                "radius": radius(row["eps"]),
                "settings": _attack_words(row.get("settings") or {}),
                **{"forwards": 0, "gradients": 0, "seconds": 0.0},
            },
        )
        for key in ("forwards", "gradients", "seconds"):
            entry[key] += row.get(key) or 0
    return list(out.values())


def _attack_words(given: Mapping[str, Any]) -> list[str]:
    if "parts" in given:
        return [
            f"{part.get('attack')}: {words({k: v for k, v in part.items() if k != 'attack'})}"
            for part in given["parts"]
        ]
    return [words(given)] if given else []


def words(value: Any) -> str:
    """Format a setting for display."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # show likely radii and step sizes as fractions of 255
        levels = 255 * value
        near = 0 < value < 0.5 and abs(levels - round(levels, 2)) < 1e-6 and levels >= 0.25
        return f"{levels:.4g}/255" if near and not _short(value) else f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {words(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        return ", ".join(words(v) for v in value) or "none"
    return str(value)


def _short(value: float) -> bool:
    return len(repr(value)) <= 7
