"""The ladder's tables have what the rows say."""

from helpers.ladder_files import BOX, MANY, OP, PEER, SECONDS, STEP, TEXT, entry, rows

from benchmarks.ladder import result_file, table

LIMIT = "78 % (matmul)"


def test_the_short_table_has_the_slowest_size_of_each_thing():
    """In float32 alone, "auto" has no column."""
    lines = table.short_table(result_file.by_group(rows())).splitlines()
    assert lines == [
        "| group | eager, float32 | careful | fastprompt, float32 | share of the limit |",
        "| --- | --- | --- | --- | --- |",
        f"| `{STEP}` | 45 s | 5.0x | **9.0x** | {LIMIT} |",
        f"| `{TEXT}` | 12.8 s |  | **16.0x** | {LIMIT} |",
        f"| `{PEER}` | 1.5 s (torchattacks) |  | **3.0x** | {LIMIT} |",
        f"| `{OP}` | 300 ms |  | **6.0x** | {LIMIT} |",
    ]


def test_with_bfloat16_both_precisions_are_shown_and_marked():
    low = {"eager-careful", "compiled", "fastprompt"}
    seconds = {
        STEP: {
            "eager": [40.0],
            "eager-careful": [10.0],
            "compiled": [8.0],
            "fastprompt-fp32": [5.0],
            "fastprompt": [2.0],
        },
        PEER: {"torchattacks": [1.5], "fastprompt": [0.5]},  # a classifier of float32
    }
    found = [
        entry(g, r, rungs, dtype="bfloat16" if r in low and g == STEP else "float32")
        for g, rungs in seconds.items()
        for r in rungs
    ]
    groups = result_file.by_group(result_file.rows_of(found))
    head, _, step, peer = table.short_table(groups).splitlines()
    assert head == (
        "| group | eager, float32 | careful | fastprompt, float32 | fastprompt, auto "
        "| share of the limit |"
    )
    assert step == f"| `{STEP}` | 40 s | 5.0x bf16 | **8.0x** | **20.0x** bf16 | {LIMIT} |"
    assert peer == f"| `{PEER}` | 1.5 s (torchattacks) |  | **3.0x** | **3.0x** | {LIMIT} |"
    whole = table.whole_table(groups)
    assert "| eager-careful | compiled | fastprompt-fp32 | fastprompt |" in whole
    assert "| 40 s | 4.0x bf16 | 5.0x bf16 | 8.0x | **20.0x** bf16 |" in whole


def test_an_operation_is_shown_at_the_size_that_its_sweep_starts_from():
    swept = {OP: SECONDS[OP], f"{OP}-k32": {"eager": [0.9], "fastprompt": [0.2]}}
    assert list(table.telling(result_file.by_group(rows(swept)))) == [OP]


def test_the_whole_table_has_every_group_and_spreads():
    text = table.whole_table(result_file.by_group(rows()))
    assert [line.split("`")[1] for line in text.splitlines()[2:]] == list(SECONDS)
    assert "78 % (matmul) | 5 s | 7.5x to 10.0x | 3e-06 |" in text
    # eager is left out by name, and not made up
    assert f"| `{MANY}` | 300 s (eager-hoisted) |  |  | **2.0x** |" in text
    assert f"| `{BOX}` | 30 µs |" in text


def test_what_is_not_counted_stays_empty():
    found = rows(ceiling=None, share_of_limit=None, limit=None, largest_error=None)
    groups = result_file.by_group(found)
    assert table.short_table(groups).splitlines()[-1] == f"| `{OP}` | 300 ms |  | **6.0x** |  |"
    assert f"| `{OP}` | 300 ms |  |  | **6.0x** |  |  |  |  |" in table.whole_table(groups)
    assert "| 50 ms | 6.0x to 6.0x |  |" in table.whole_table(groups)


def test_figures_keep_three_digits_and_ratios_one_place():
    durations = (39.27, 150.4, 0.9996, 0.0123, 4.2e-5)
    assert [table.duration(s) for s in durations] == [
        *("39.3 s", "150 s", "1 s", "12.3 ms", "42 µs")
    ]
    ratios = (0.854, 0.994, 0.996, 1.0, 8.26, 99.4, 99.6, 123.4, None)
    assert [table.times(r) for r in ratios] == [
        *("0.85x", "0.99x", "1.0x", "1.0x", "8.3x", "99.4x", "100x", "123x", "")
    ]
