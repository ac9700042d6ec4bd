"""The result of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._utils.checks import Fraction, check_path, parse_fraction
from .._utils.files import read_json, write_json
from .._utils.versions import versions
from .text_table import text_table

FORMAT = 2
THREAT_MODEL = "L-inf in pixel space, pixels in [0, 1]"


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        rows: one dict per model, attack and eps: see `evaluate`; those of earlier versions have no
            ``search_precision``.
        sanity: one dict per model and check: ``model``, ``check``, ``verdict`` (``"passed"``,
            ``"failed"``, ``"skipped"``), ``reason``, ``figures``, ``decisive`` (whether the result
            is not trusted if the check was skipped).
        data: the images: ``name``, ``fingerprint``, ``n``, ``indices``, ``labels``,
            ``classnames``, ``classes`` (all, base or new), ``unreadable`` (images left out).
        models: how each model computes and a hash of its weights, by name.
        how: seed, batch, samples, device; ``search_precision`` by model (of surrogates by ``@`` and
            the name) and ``confirm`` if attacks searched in another precision than the models'.
        diagnostics: router weights and corrections of the refiners, by model.
        calibration: by model, see `calibrate`; empty unless it was requested.
    """

    rows: list[dict[str, Any]]
    sanity: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    calibration: dict[str, Any] = field(default_factory=dict)

    @property
    def scoring(self) -> str:
        """``"strict"`` or ``"published"``, see `evaluate`."""
        return "published" if self.how.get("alone") else "strict"

    @property
    def trusted(self) -> bool:
        """Whether every attack had usable gradients, and no check failed or could not run."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Reasons not to trust the result, by model and attack or check."""
        rows = [f"{r['model']}, {r['attack']}: {why}" for r in self.rows for why in r["reasons"]]
        failed = [f"{s['model']}, {s['check']}: {s['reason']}" for s in self.sanity if in_doubt(s)]
        return [*rows, *failed]

    def row(self, model: str, attack: str, eps: Fraction = 0.0) -> dict[str, Any]:
        """Return one row.

        Raises:
            KeyError: there is no such row.
        """
        radius = parse_fraction(eps, "eps", zero=True)
        for row in self.rows:
            same = row["model"] == model and row["attack"] == attack
            if same and (attack == "clean" or math.isclose(row["eps"], radius)):
                return row
        raise KeyError(f"no row for model {model!r}, attack {attack!r}, eps {eps!r}")

    def accuracy(self, model: str, attack: str, eps: Fraction = 0.0) -> float:
        """Return the accuracy of one row; raises as `row` does."""
        return float(self.row(model, attack, eps)["accuracy"])

    def as_dict(self) -> dict[str, Any]:
        """Return the dict that `save` writes."""
        return {
            "format": FORMAT,
            "threat_model": THREAT_MODEL,
            "trusted": self.trusted,
            "reasons": self.reasons,
            "rows": self.rows,
            "sanity": self.sanity,
            "data": self.data,
            "models": self.models,
            "how": self.how,
            "diagnostics": self.diagnostics,
            "calibration": self.calibration,
            "versions": self.versions,
        }

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        write_json(Path(path), self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Load a result that `save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, not a result, or has another format.
        """
        path = check_path(path, "path")
        if path.is_dir():
            raise FileNotFoundError(f"path: {path} is a folder; pass its result.json")
        found = read_json(path)
        if found.get("format") != FORMAT or not isinstance(found.get("rows"), list):
            raise ValueError(
                f"{path} has format {found.get('format')!r}, but this version of fastprompt reads "
                f"{FORMAT}; evaluate again"
            )
        _rename(found)
        keys = ("rows", "sanity", "data", "models", "how", "diagnostics", "calibration", "versions")
        return cls(**{key: found[key] for key in keys if key in found})

    def table(self) -> str:
        """Format the rows as text: one line per attack, one column per model."""
        cells: dict[tuple[str, str, float], dict[str, str]] = {}
        for r in self.rows:
            cells.setdefault((r["attack"], r["path"], r["eps"]), {})[r["model"]] = _cell(r)
        return text_table(cells, self.reasons, search_notes(self.rows))


def in_doubt(check: Mapping[str, Any]) -> bool:
    """Whether a check of `Evaluation.sanity` failed, or is decisive and could not run."""
    skipped = check["verdict"] == "skipped" and check.get("decisive", False)
    return check["verdict"] == "failed" or skipped


def _rename(found: dict[str, Any]) -> None:
    """Replace names used before the release of 0.1.0 with the current ones."""
    data, models = found.get("data"), found.get("models")
    if isinstance(data, dict) and data.get("name") == "shapes-recoloured":
        data["name"] = "shapes-recolored"
    for facts in models.values() if isinstance(models, dict) else ():
        if isinstance(facts, dict) and "defences" in facts:
            facts["defenses"] = facts.pop("defences")


def _cell(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    mark = "" if row["trusted"] else " !"
    return f"{100 * row['accuracy']:5.1f} % [{100 * low:.0f}, {100 * high:.0f}]{mark}"


def search_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each precision in which attacks searched, if it is not the models'."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("search_precision", "own") != "own":
            judged = row.get("precision", "its own precision")
            found.setdefault((row["search_precision"], judged), []).append(row["model"])
    return [
        f"{', '.join(dict.fromkeys(models))}: searched in {low}, judged in {judged}"
        for (low, judged), models in found.items()
    ]


def worst_case(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the worst flag of each image over some rows: fooled, stalled or robust."""
    together = zip(*(row["flags"] for row in rows), strict=True)
    return "".join(min(flags, key="0?1".index) for flags in together)
