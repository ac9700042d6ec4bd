"""A strong attack at several radii: what withstands a large ball is not attacked in a small one."""

import pytest

from benchmarks.accuracy.methods import radii
from fastprompt import evaluate, load_clip, load_data

RADII = ("0.25/255", "0.5/255")


@pytest.fixture(scope="module")
def case():
    data = load_data("shapes", shots=1)
    model = load_clip("tiny-shapes").zero_shot(data.classnames, data.templates)
    return model, data.test


def test_all_radii_are_as_if_each_were_evaluated_alone(case, tmp_path):
    how = {"limit": 24, "batch": 16, "sanity": "off", "progress": False}
    rows, reasons = radii.from_the_largest(*case, "apgd-ce", RADII, tmp_path, **how)
    assert reasons == []
    alone = evaluate(*case, "apgd-ce", RADII, **how)
    stood = 0
    for radius, row in zip(reversed(RADII), rows, strict=True):
        one = alone.row("model", "apgd-ce", radius)
        assert {k: row[k] for k in ("eps", "n", "flags", "accuracy", "interval")} == {
            k: one[k] for k in ("eps", "n", "flags", "accuracy", "interval")
        }
        assert row.get("withstood_before", 0) == stood
        stood = one["correct"]
    assert 0 < rows[0]["accuracy"] < rows[-1]["accuracy"]
    assert rows[-1]["gradients"] < alone.row("model", "apgd-ce", RADII[0])["gradients"]


def test_images_that_were_not_attacked_again_stand_after_each_part():
    parts = [{"attack": "apgd-ce", "standing": 2}, {"attack": "apgd-t", "standing": 1}]
    row = radii._completed({"attack": "autoattack", "flags": "0?1", "parts": parts}, "10110?")
    assert row["flags"] == "1011?1"
    assert (row["n"], row["accuracy"], row["withstood_before"]) == (6, 4 / 6, 3)
    assert [part["standing"] for part in row["parts"]] == [5, 4]
