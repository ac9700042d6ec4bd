"""Phrases for the images of a run or an evaluation."""

from ..evaluation import Evaluation


def classes_of(n: int, classes: str | None) -> str:
    """Return such as ``6 classes``, or ``3 base classes`` for a half of the data set's classes."""
    half = f"{classes} " if classes in ("base", "new") else ""
    return f"{n} {half}classes"


def images_of(result: Evaluation) -> str:
    """Return such as ``400 test images of shapes (80 classes)``."""
    about = result.data
    of = f" of {about['name']}" if about.get("name") else ""
    classes = classes_of(len(about["classnames"] or ()), about.get("classes"))
    lost = about.get("unreadable")
    left = f", {lost} unreadable left out" if lost else ""
    splits = f"; {about['splits']}" if about.get("splits") else ""
    return f"{about['n']} test images{of} ({classes}{left}{splits})"
