"""Phrases for the images of a run or an evaluation."""

from ..evaluation import Evaluation


def classes_of(n: int, classes: str | None) -> str:
    """Return such as ``6 classes``, or ``3 base classes`` for a half of the data set's classes."""
    half = f"{classes} " if classes in ("base", "new") else ""
    return f"{n} {half}classes"


def images_of(result: Evaluation) -> str:
    """Return such as ``200 of 2,000 test images of shapes (80 classes), drawn by seed 0``."""
    about = result.data
    n, total = about["n"], about.get("of") or about["n"]
    drawn = f", drawn by seed {result.how['seed']}" if total > n else ""
    out_of = f" of {total:,}" if total > n else ""
    of = f" of {about['name']}" if about.get("name") else ""
    classes = classes_of(len(about["classnames"] or ()), about.get("classes"))
    lost = about.get("unreadable")
    left = f", {lost} unreadable left out" if lost else ""
    splits = f"; {about['splits']}" if about.get("splits") else ""
    return f"{n:,}{out_of} test images{of} ({classes}{left}{splits}){drawn}"
