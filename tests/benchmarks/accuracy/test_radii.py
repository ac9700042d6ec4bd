"""A strong attack at several radii: what withstands a large ball is not attacked in a small one."""

import pytest

from benchmarks.accuracy.methods import radii
from fastprompt import evaluate, load_clip, load_data

RADII = ("0.25/255", "0.5/255")
KEYS = ("eps", "n", "flags", "accuracy", "interval")


@pytest.fixture(scope="module")
def case():
    data = load_data("shapes", shots=1)
    model = load_clip("tiny-shapes").zero_shot(data.classnames, data.templates)
    return model, data.test


def test_all_radii_are_as_if_each_were_evaluated_alone(case, tmp_path):
    how = {"limit": 24, "batch": 16, "sanity": "off", "progress": False}
    rows, reasons = radii.from_the_largest(*case, "apgd-ce-9", RADII, out=tmp_path, **how)
    assert reasons == []
    alone = evaluate(*case, "apgd-ce-9", RADII, **how)
    small, large = (alone.row("model", "apgd-ce-9", radius) for radius in RADII)
    assert {k: rows[0][k] for k in KEYS} == {k: large[k] for k in KEYS}
    # random starts depend on an image's place in the data
    assert abs(rows[1]["correct"] - small["correct"]) <= 1
    for before, flag in zip(large["flags"], rows[1]["flags"], strict=True):
        assert flag == "1" or before != "1"
    assert rows[1]["withstood_before"] == large["correct"] > 0
    assert rows[1]["accuracy"] == rows[1]["correct"] / 24 > rows[0]["accuracy"]
    assert rows[1]["gradients"] < small["gradients"]


def test_images_that_were_not_attacked_again_stand_after_each_part():
    parts = [
        {"attack": "apgd-ce", "standing": 3, "flags": "1?1"},
        {"attack": "apgd-t", "standing": 2, "flags": "0?1"},
    ]
    row = radii._completed({"attack": "autoattack", "flags": "0?1", "parts": parts}, "10110?")
    assert row["flags"] == "1011?1"
    assert (row["n"], row["accuracy"], row["withstood_before"]) == (6, 4 / 6, 3)
    assert [part["standing"] for part in row["parts"]] == [6, 5]
    assert [part["flags"] for part in row["parts"]] == ["1111?1", "1011?1"]


def test_flags_of_other_images_are_refused():
    with pytest.raises(ValueError, match="2 flags for '10'"):
        radii._completed({"flags": "01"}, "10")
