"""A file of the ladder is read as it stands, or refused."""

import pytest
from helpers.ladder_files import (
    MACHINE,
    SECONDS,
    STEP,
    entries,
    save,
)

from benchmarks.ladder import result_file


def test_rows_are_the_ladders_alone(tmp_path):
    found = result_file.read(save(tmp_path, {"benchmarks": entries()}))
    assert len(found) == sum(map(len, SECONDS.values()))
    row = result_file.by_group(found)[STEP]["fastprompt"]
    assert (row.median, row.ratio, row.ratio_range) == (5.0, 9.0, (7.5, 10.0))
    assert row.size == {"classes": 100, "shape": [8, 100]}
    assert row.machine == MACHINE
    assert (row.ceiling, row.limit, row.share_of_limit) == (9.6, "matmul", 0.781)


def test_a_file_that_is_not_a_ladder_is_refused(tmp_path):
    for found, says in (
        ({"rows": []}, "'benchmarks'"),
        ({"benchmarks": []}, "extra_info"),
        ({"benchmarks": entries()[:1] * 2}, "twice"),
    ):
        with pytest.raises(ValueError, match=says):
            result_file.read(save(tmp_path, found))
    lacking = entries()
    del lacking[0]["extra_info"]["ratio_to_eager"]
    with pytest.raises(ValueError, match=r"^step/nap/c10 eager.*'ratio_to_eager'"):
        result_file.rows_of(lacking)


def test_a_ratio_that_is_not_that_of_its_seconds_is_refused(tmp_path):
    found = entries()
    found[-2]["extra_info"]["ratio_to_eager"] *= 1.001
    with pytest.raises(ValueError, match=r"kernels/pgd_step/b8 fastprompt.*ratio"):
        result_file.read(save(tmp_path, {"benchmarks": found}))
