"""Format accuracies as a plain-text table."""

from collections.abc import Iterable, Mapping

from .._utils.printable import printable


def text_table(
    cells: Mapping[tuple[str, str, float], Mapping[str, str]],
    reasons: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> str:
    """Format one line per attack, path and eps, with one column per model.

    ``reasons`` not to trust the table and ``notes`` follow, one a line.
    """
    models = list(dict.fromkeys(model for row in cells.values() for model in row))
    table = [["attack", "path", "eps", *map(printable, models)]]
    for (attack, path, eps), row in cells.items():
        radius = f"{eps * 255:g}/255" if eps else "0"
        names = (printable(attack), printable(path), radius)
        table.append([*names, *(row.get(model, "") for model in models)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    table.insert(1, ["-" * w for w in widths])
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in table]
    below = [f"! not to be trusted: {printable(reason)}" for reason in dict.fromkeys(reasons)]
    below += map(printable, dict.fromkeys(notes))
    return "\n".join([*(line.rstrip() for line in lines), *below])
