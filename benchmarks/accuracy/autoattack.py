"""Compares AutoAttack (standard) with torchattacks' four attacks on the same images, in one run.

python -m benchmarks.accuracy autoattack measure --eps 4/255 --images 200
python -m benchmarks.accuracy autoattack measure --clip tiny-photos --method nap --eps 2/255
python -m benchmarks.accuracy autoattack table
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastprompt import evaluate, load_data
from fastprompt._utils.checks import check_choice, parse_fraction
from fastprompt._utils.files import read_json, write_json
from fastprompt.data import ImageTensors
from fastprompt.evaluation.scoring import Counted

from ..common.machine import facts
from ..common.paths import TWO_CORES
from ..common.report import table
from .methods.cells import main_cells
from .methods.photo_cells import main_photo_cells
from .methods.results_page import name_of
from .methods.run import classifier_of

RESULT = TWO_CORES / "autoattack.json"
STEPS, TARGETS, QUERIES = 100, 9, 5000


def peer(model: nn.Module, eps: float, seed: int) -> Any:
    """Combine torchattacks' attacks with the standard's settings; its `AutoAttack` has others."""
    import torchattacks  # from the extra `peers`; printing the tables does not need it

    shared = {"norm": "Linf", "eps": eps, "seed": seed}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, steps=STEPS, loss="ce", **shared),
            torchattacks.APGDT(model, steps=STEPS, n_classes=TARGETS + 1, **shared),
            torchattacks.FAB(
                model, steps=STEPS, n_classes=TARGETS + 1, multi_targeted=True, **shared
            ),
            torchattacks.Square(model, n_queries=QUERIES, resc_schedule=False, **shared),
        ]
    )


def _theirs(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, batch: int, seed: int
) -> dict[str, Any]:
    counted = Counted(model).eval()
    attack, standing = peer(counted, eps, seed), 0
    attack.set_device(images.device)
    for each in attack.attacks:
        each.set_device(images.device)
    began = time.perf_counter()
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        adv = attack(x, y)
        inside = (adv - x).abs().flatten(1).amax(1) <= eps + 1e-6
        with torch.no_grad():
            right = model(x).argmax(1) == y
            standing += int((right & ((model(adv).argmax(1) == y) | ~inside)).sum())
    return {
        "seconds": time.perf_counter() - began,
        "standing": standing,
        "gradients": counted.gradients,
        "forwards": counted.forwards,
    }


def _ours(
    model: nn.Module, data: ImageTensors, eps: float, batch: int, seed: int
) -> dict[str, Any]:
    began = time.perf_counter()
    options: dict[str, Any] = {"batch": batch, "seed": seed, "sanity": "off", "progress": False}
    row = evaluate(model, data, ["autoattack"], eps, **options).row("model", "autoattack", eps)
    kept = ("gradients", "forwards", "parts")
    return {
        "seconds": time.perf_counter() - began,
        "standing": row["correct"],
        **{k: row[k] for k in kept},
    }


def _classifier(clip: str, method: str, names: list[str], templates: Any) -> nn.Module:
    """Return the comparison's classifier of this model, method and first seed; tuned if needed."""
    cells = [*main_cells(), *main_photo_cells()]
    known = {cell.method: cell for cell in cells if (cell.model, cell.seed) == (clip, 0)}
    check_choice(method, "method", tuple(known))
    return classifier_of(known[method], names, templates)[0]


def measure(
    clip: str = "tiny-shapes-robust",
    method: str = "zero-shot",
    eps: str = "4/255",
    images: int = 200,
    batch: int = 100,
    seed: int = 0,
    out: str = str(RESULT),
) -> None:
    """Attack a classifier on test images with both; add to the file.

    The models of photographs get photographs, the others drawn shapes. The prompts of a method are
    those of ``python -m benchmarks.accuracy methods measure``, with the first seed.
    """
    threads = torch.get_num_threads()
    data = load_data("photos" if clip.startswith("tiny-photos") else "shapes", shots=1)
    model = _classifier(clip, method, data.classnames, data.templates)
    torch.set_num_threads(threads)  # tuning uses one
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))[:images]
    pictures, labels = zip(*(data.test[row] for row in order.tolist()), strict=True)
    chosen = ImageTensors(torch.stack(pictures), torch.tensor(labels))
    pixels, radius = chosen.images.float() / 255, parse_fraction(eps, "eps")
    with torch.no_grad():
        clean = int((model(pixels).argmax(1) == chosen.labels).sum())
    ours = _ours(model, chosen, radius, batch, seed)
    theirs = _theirs(model, pixels, chosen.labels, radius, batch, seed)
    path = Path(out)
    rows = read_json(path)["rows"] if path.exists() else []
    about = {
        "clip": clip,
        "method": method,
        "eps": eps,
        "images": images,
        "batch": batch,
        "seed": seed,
    }
    rows = [row for row in rows if {k: row[k] for k in about} != about]
    measured = {"threads": threads, "clean": clean, "fastprompt": ours, "torchattacks": theirs}
    rows.append({**about, **measured, "machine": facts()})
    write_json(path, {"rows": rows})
    show(out)


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the result's table."""
    head = ["", "method", "eps", "threads", "clean"]
    for what in ("stand", "s", "forwards", "gradients"):
        head += [what, f"{what} (torchattacks)"]
    found = [[*head, "ratio"]]
    for row in result["rows"]:
        ours, theirs, n = row["fastprompt"], row["torchattacks"], row["images"]
        counts = (row["clean"], ours["standing"], theirs["standing"])
        found.append(
            [
                row["clip"],
                name_of(row["method"]),
                row["eps"],
                str(row["threads"]),
                *(f"{100 * k / n:.1f}" for k in counts),
                f"{ours['seconds']:.0f}",
                f"{theirs['seconds']:.0f}",
                *(f"{side[k]:,}" for k in ("forwards", "gradients") for side in (ours, theirs)),
                f"{theirs['seconds'] / ours['seconds']:.1f}x",
            ]
        )
    return found


def show(out: str = str(RESULT)) -> None:
    """Print the file's table."""
    print(table(lines(read_json(Path(out)))))
