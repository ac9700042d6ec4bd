"""Clean and robust accuracy of one classifier or of several side by side."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._checks import Fraction, check_count, check_label_range, parse_fraction
from .._files import write_json
from ..attacks import AttackResult, GradientHealth
from ..attacks.ascent import evaluating, module_device
from ..data.loading import ImageDataset, batches, check_dataset
from ..runs import versions
from .attacks import Attack, clean, make_attack
from .text_table import text_table

Model = Callable[[Tensor], Tensor]


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 % by default (Wilson, JASA 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    below = 1 + z * z / n
    return max(0.0, (centre - spread) / below), min(1.0, (centre + spread) / below)


@dataclass(frozen=True)
class Evaluation:
    """Attributes:

    rows: one dict for each model, attack and eps: see `evaluate`.
    """

    rows: list[dict[str, Any]]

    @property
    def trusted(self) -> bool:
        """Whether every attack had gradients to follow."""
        return all(row["trusted"] for row in self.rows)

    @property
    def reasons(self) -> list[str]:
        """Why not, by model and attack."""
        return [f"{r['model']}, {r['attack']}: {why}" for r in self.rows for why in r["reasons"]]

    def accuracy(self, model: str, attack: str, eps: Fraction = 0.0) -> float:
        """The accuracy in one row.

        Raises:
            KeyError: there is no such row.
        """
        radius = parse_fraction(eps, "eps", zero=True)
        for row in self.rows:
            same = row["model"] == model and row["attack"] == attack
            if same and (attack == "clean" or math.isclose(row["eps"], radius)):
                return float(row["accuracy"])
        raise KeyError(f"no row for model {model!r}, attack {attack!r}, eps {eps!r}")

    def as_dict(self) -> dict[str, Any]:
        """What `save` writes."""
        return {
            "rows": self.rows,
            "threat_model": "L-inf in pixel space, pixels in [0, 1]",
            "trusted": self.trusted,
            "reasons": self.reasons,
            "versions": versions(),
        }

    def save(self, path: str | Path) -> None:
        """Write the rows as JSON."""
        write_json(Path(path), self.as_dict())

    def table(self) -> str:
        """Rows as text: one line an attack, one column a model."""
        cells: dict[tuple[str, str, float], dict[str, str]] = {}
        for r in self.rows:
            mark = "" if r["trusted"] else " !"
            low, high = r["interval"]
            cell = f"{100 * r['accuracy']:5.1f} % [{100 * low:.0f}, {100 * high:.0f}]{mark}"
            cells.setdefault((r["attack"], r["path"], r["eps"]), {})[r["model"]] = cell
        notes = [f"! not to be trusted: {reason}" for reason in self.reasons]
        return "\n".join([text_table(cells), *notes])


class _Tally:
    """Flags and health of one model under one attack, batch by batch."""

    def __init__(self) -> None:
        self.standing: list[Tensor] = []
        self.health: list[GradientHealth] = []

    def row(
        self, model: str, attack: Attack, seconds: float, facts: dict[str, Any]
    ) -> dict[str, Any]:
        health = GradientHealth.join(self.health)
        standing = torch.cat(self.standing).cpu()
        # an image whose attack had no gradient is not shown to be robust: it does not count as such
        stalled = health.stalled.cpu()
        robust = standing & ~stalled
        n, correct = len(robust), int(robust.sum())
        return {
            "model": model,
            **facts,
            "attack": attack.name,
            "path": attack.path,
            "eps": attack.eps,
            "accuracy": correct / n,
            "n": n,
            "correct": correct,
            "interval": list(wilson(correct, n)),
            "stalled": int((standing & stalled).sum()),
            "trusted": health.trusted,
            "reasons": health.reasons,
            "zero_gradients": health.zero_share,
            "nonfinite_gradients": health.nonfinite_share,
            "settings": attack.settings,
            "seconds": round(seconds, 3),
        }


def evaluate(
    models: nn.Module | Model | Mapping[str, Model],
    data: ImageDataset,
    attacks: Sequence[str] = ("clean", "pgd-20"),
    eps: Fraction | Sequence[Fraction] = "4/255",
    *,
    batch: int = 128,
    limit: int | None = None,
    stop_every: int | None = None,
    seed: int = 0,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Evaluation:
    """Clean and robust accuracy.

    An image counts as robust if it is classified rightly both clean and attacked, and the attack on
    it had a gradient to follow: one that stood still shows nothing. Such images are counted as
    ``stalled``, and more than one in a hundred make the row ``trusted: false``.

    Args:
        models: pixels in [0, 1] to logits: one, or several by name.
        data: map-style data set of uint8 images ``[3, H, W]`` and labels.
        attacks: ``"clean"``, ``"pgd-N"`` (through the model), ``"feature-pgd-N"`` (on the image
            encoder of a model that has ``.clip``; blind to the prompts).
        eps: one radius or several, in pixel units or such as ``"4/255"``.
        batch: images attacked at once.
        limit: so many images, drawn by ``seed`` (the same for all); None takes all.
        stop_every: an adaptive attack looks at its images every so many steps, and leaves alone
            those that are wrong: at least as strong, and faster. None judges the last iterate.
        seed: of that draw and of the random starts.
        workers: processes that decode images.
        device: where the models are; by default where the first one's buffers are.
        progress: show a bar, where the output is a terminal.

    Returns:
        Rows of ``model``, ``attack``, ``path``, ``eps``, ``accuracy`` in [0, 1], ``n`` and more.

    Raises:
        ValueError: an unknown attack (the nearest are offered), a radius out of range, no images.
    """
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ValueError("models must not be empty")
    check_dataset(data, "data")
    check_count(batch, "batch")
    plan = plan_attacks(attacks, eps, seed, stop_every)
    for attack in plan:
        blind = attack.path.startswith("transfer")
        without = [name for name, model in named.items() if blind and not hasattr(model, "clip")]
        if without:
            raise ValueError(
                f"attack {attack.name!r} needs the image encoder of {without[0]!r}: it has no .clip"
            )
    rows = _draw_rows(len(data), limit, seed)
    first = next(iter(named.values()))
    where = module_device(first, torch.device("cpu")) if device is None else torch.device(device)
    tallies = {(a.name, a.eps, m): _Tally() for a in plan for m in named}
    seconds = dict.fromkeys(tallies, 0.0)
    total = len(rows) * len(tallies)
    with tqdm(total=total, desc="evaluate", unit="img", disable=None if progress else True) as bar:
        for indices, images, labels in batches(data, rows, batch, workers):
            images, labels, indices = images.to(where), labels.to(where), indices.to(where)
            right = {name: _right(model, images, labels) for name, model in named.items()}
            for attack in plan:
                made: dict[int, AttackResult] = {}  # by what is attacked: a model or an encoder
                for name, model in named.items():
                    began = time.perf_counter()
                    target = id(model if attack.per_model else getattr(model, "clip", None))
                    if target not in made:
                        made[target] = attack.run(model, images, labels, indices)
                    result = made[target]
                    tally = tallies[attack.name, attack.eps, name]
                    tally.standing.append(right[name] & _right(model, result.images, labels))
                    tally.health.append(result.health)
                    seconds[attack.name, attack.eps, name] += time.perf_counter() - began
                    bar.update(len(images))
    return Evaluation(
        [
            tallies[a.name, a.eps, m].row(m, a, seconds[a.name, a.eps, m], _facts(named[m]))
            for a in plan
            for m in named
        ]
    )


def plan_attacks(
    attacks: Sequence[str],
    eps: Fraction | Sequence[Fraction],
    seed: int,
    stop_every: int | None = None,
) -> list[Attack]:
    """The attacks of an evaluation, each at each radius; raises as `evaluate` does."""
    split = attacks.split(",") if isinstance(attacks, str) else attacks
    names = list(dict.fromkeys(split))
    if not names:
        raise ValueError("attacks must not be empty")
    several = isinstance(eps, Sequence) and not isinstance(eps, str)
    given: Sequence[Any] = eps if several else [eps]  # type: ignore[assignment]
    radii = [parse_fraction(e, "eps", zero=True) for e in given]
    if not radii:
        raise ValueError("eps must not be empty")
    plan = []
    for name in names:
        if name == "clean":
            plan.append(clean())
            continue
        if name.startswith("feature") and 0.0 in radii:
            raise ValueError(f"eps must be above 0 for {name!r}")
        plan += [make_attack(name, radius, seed, stop_every) for radius in dict.fromkeys(radii)]
    return plan


def _facts(model: Model) -> dict[str, Any]:
    """How a classifier of ours computes."""
    return {k: getattr(model, k) for k in ("engine", "precision") if hasattr(model, k)}


def _draw_rows(n: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or limit >= n:
        return list(range(n))
    check_count(limit, "limit")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())


@torch.no_grad()
def _right(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Which images the model classifies rightly, bool ``[B]``; a NaN logit is never right."""
    with evaluating(model):
        logits = model(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"model must give logits [{len(images)}, C], got {list(logits.shape)}")
    check_label_range(int(labels.max()), logits.shape[1])
    return (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)
