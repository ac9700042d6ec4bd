"""Writes the pages' tables and a drawing from the committed results, and checks the pages.

python -m benchmarks.pages            # prints the ladder's short table, checks the pages
python -m benchmarks.pages --write    # writes the marked tables of the pages and the drawing

A page's tables are between ``<!-- ladder -->`` and ``<!-- /ladder -->``; docs/benchmarks.md also
has blocks for the GPU and for growth, benchmarks/README.md has the profile, docs/step_budget.md the
estimate of a step, docs/guides/many_devices.md the bytes that a step sends, an estimate of its
scaling and the times of Ray workers, docs/guides/predict.md the rates of predictions,
docs/guides/export.md the accuracies of int8 files, docs/guides/protocols.md the accuracies on
Caltech101, docs/guides/robustness.md the comparison with torchattacks' AutoAttack,
docs/results_photos.md, docs/guides/choosing.md and README.md the comparison of the methods on
photographs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json, write_bytes

from .accuracy import autoattack, caltech
from .accuracy.methods import photos_page
from .common.paths import RESULTS, ROOT, TWO_CORES
from .common.report import NOT_YET, markdown
from .gpu import scaling
from .gpu.budget import table as budget_table
from .growth import curves as growth_curves
from .growth.table import lines as growth_lines
from .inference import int8
from .inference import measure as predictions
from .ladder import profiling, result_file
from .ladder.gpu_demands import gpu_table
from .ladder.plot import draw, words
from .ladder.table import blocks, short_table, whole_table
from .workers import measure as workers

README, PAGE = Path("README.md"), Path("docs/benchmarks.md")
NOTES = Path("benchmarks/README.md")
BUDGET = Path("docs/step_budget.md")
DEVICES = Path("docs/guides/many_devices.md")
PREDICT = Path("docs/guides/predict.md")
EXPORT = Path("docs/guides/export.md")
PROTOCOLS = Path("docs/guides/protocols.md")
ROBUSTNESS = Path("docs/guides/robustness.md")
PHOTOS, CHOOSING = Path("docs/results_photos.md"), Path("docs/guides/choosing.md")
_OTHERS = (PREDICT, EXPORT, PROTOCOLS, ROBUSTNESS, PHOTOS, CHOOSING)
PAGES = (README, PAGE, NOTES, BUDGET, DEVICES, *_OTHERS)
PLOT = PAGE.with_suffix(".svg")
LINK = f"![Speed-up of each rung, seconds and memory against the number of classes]({PLOT.name})"


def wanted(results: Path = RESULTS) -> dict[Path, dict[str, str]]:
    """Return for each page the text of each marked block."""
    ladders = result_file.committed(results)
    short = blocks(ladders, "benchmarks/results", short_table)
    whole = blocks(ladders, "../benchmarks/results", whole_table)
    if ladders:
        whole = f"{LINK}\n\n{whole}"
    gpu = gpu_table(results)
    growth = _of_machines(results, growth_curves.FILE, _growth)
    profiles = _of_machines(results, profiling.RESULT.name, profiling.table)
    rates = _of_machines(results, predictions.RESULT.name, _table_of(predictions.lines))
    quantized = _of_machines(results, int8.RESULT.name, _table_of(int8.lines))
    times = _of_machines(results, workers.RESULT.name, _table_of(workers.lines))
    strength = _of_machines(results, autoattack.RESULT.name, _table_of(autoattack.lines))
    accuracies = _of_machines(results, caltech.RESULT.name, caltech.text)
    photos = photos_page.blocks(results / TWO_CORES.name)
    of_readme, of_choosing = ({n: photos.pop(n)} for n in (photos_page.SHORT, photos_page.CHOICE))
    return {
        README: {"ladder": short, **of_readme},
        PAGE: {"ladder": whole, "growth": growth, "gpu": gpu},
        NOTES: {"profile": profiles},
        BUDGET: {"budget": budget_table(results)},
        DEVICES: {"sent": scaling.sent_table(), "scaling": scaling.table(), "workers": times},
        PREDICT: {"predict": rates},
        EXPORT: {"int8": quantized},
        PROTOCOLS: {"caltech101": accuracies},
        ROBUSTNESS: {"autoattack": strength},
        PHOTOS: photos,
        CHOOSING: of_choosing,
    }


def _growth(result: Mapping[str, Any]) -> str:
    return markdown(*growth_lines(result))


def _table_of(
    lines: Callable[[Mapping[str, Any]], Sequence[list[str]]],
) -> Callable[[Mapping[str, Any]], str]:
    def text(result: Mapping[str, Any]) -> str:
        head, *rows = lines(result)
        return markdown(head, rows)

    return text


def _of_machines(results: Path, file: str, table: Callable[[Mapping[str, Any]], str]) -> str:
    """Return each machine's table below its name."""
    paths = sorted(results.glob(f"*/{file}"))
    parts = [f"{path.parent.name}:\n\n{table(read_json(path))}" for path in paths]
    return "\n\n".join(parts) or f"{NOT_YET[0].upper()}{NOT_YET[1:]}."


def _block(name: str) -> re.Pattern[str]:
    return re.compile(f"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", flags=re.S)


def _filled(text: str, name: str, part: str) -> str:
    return _block(name).sub(lambda found: f"{found[1]}\n{part}\n\n{found[3]}", text)


def differences(page: Path, text: str, parts: Mapping[str, str]) -> list[str]:
    """Return a message for each line that differs between a page's blocks and the results."""
    out = []
    for name, part in parts.items():
        found = _block(name).search(text)
        if found is None:
            out.append(f"{page}: there is no <!-- {name} --> followed by <!-- /{name} -->")
            continue
        says, measured = found[2].strip().splitlines(), part.splitlines()
        if says == measured:
            continue
        wrong = [line for line in says if line and line not in measured]
        left_out = [line for line in measured if line and line not in says]
        out += [f"{page}, {name}: not in the committed results: {line}" for line in wrong]
        out += [f"{page}, {name}: missing from the page: {line}" for line in left_out]
        if not wrong and not left_out:
            out.append(f"{page}, {name}: the lines are in another order or repeated")
    return out


def drawn(svg: str) -> str:
    """Return the drawing's description, its ``aria-label``."""
    found = re.search(r'aria-label="([^"]*)"', svg)
    return unescape(found[1]) if found else ""


def problems(
    root: Path = ROOT,
    results: Path = RESULTS,
    pages: Sequence[Path] = PAGES,
) -> list[str]:
    """Return a message for each difference between the pages, the drawing and the results."""
    out = []
    for page, parts in wanted(results).items():
        if page not in pages:
            continue
        path = root / page
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        out += differences(page, text, parts)
    said = words(result_file.committed(results), growth_curves.committed(results))
    plot = root / PLOT
    if said and (not plot.is_file() or drawn(plot.read_text(encoding="utf-8")) != said):
        out.append(f"{PLOT}: drawn from other results")
    return out


def write(root: Path = ROOT, results: Path = RESULTS) -> None:
    """Write the tables between the markers, and the drawing."""
    for page, parts in wanted(results).items():
        before = text = (root / page).read_text(encoding="utf-8")
        for name, part in parts.items():
            text = _filled(text, name, part)
        if text != before:
            write_bytes(root / page, text.encode())
    ladders, growth = result_file.committed(results), growth_curves.committed(results)
    if ladders or growth:
        write_bytes(root / PLOT, draw(ladders, growth).encode())


def main(write_pages: bool = False, root: Path = ROOT, results: Path = RESULTS) -> int:
    """Print the ladder's short table; return 1 if a page or the drawing differs from the results.

    Args:
        write_pages: write the tables between the markers first.
        root: folder of README.md and docs.
        results: folder of the machines' results.
    """
    if write_pages:
        write(root, results)
    print(wanted(results)[README]["ladder"])
    found = problems(root, results)
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print("python -m benchmarks.pages --write updates the marked blocks", file=sys.stderr)
    return 1 if found else 0


def arguments(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument(
        "--write", dest="write_pages", action="store_true", help="write the tables into the pages"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(args).as_dict()


if __name__ == "__main__":
    sys.exit(main(**arguments()))
