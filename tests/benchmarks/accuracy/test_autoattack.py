"""The comparison with torchattacks' AutoAttack takes classifiers of the comparison of methods."""

import pytest

from benchmarks.accuracy import autoattack


@pytest.fixture
def asked(monkeypatch):
    """The cells whose classifiers are asked for."""
    cells = []
    monkeypatch.setattr(autoattack, "classifier_of", lambda cell, *_: (cells.append(cell), {}))
    return cells


@pytest.mark.parametrize(
    ("clip", "data"), [("tiny-photos", "photos"), ("tiny-shapes-robust", "shapes")]
)
def test_a_tuned_classifier_is_that_of_the_main_table(asked, clip, data):
    autoattack._classifier(clip, "nap", ["cat", "dog"], None)
    (cell,) = asked
    assert (cell.part, cell.model, cell.method, cell.seed) == ("main", clip, "nap", 0)
    assert (cell.data, cell.test, cell.changes) == (data, data, ())


def test_an_unknown_method_is_named(asked):
    with pytest.raises(ValueError, match=r"method must be .*'nap'.*, got 'napp'"):
        autoattack._classifier("tiny-photos", "napp", ["cat", "dog"], None)
