"""The ladder's tables, pages and drawing say what the committed files say."""

import re
from xml.etree import ElementTree

import pytest
from ladder_files import (
    BOX,
    MACHINE,
    MANY,
    OP,
    PEER,
    SECONDS,
    STEP,
    TEXT,
    entries,
    rows,
    save,
    slower,
)

from benchmarks import growth_curves, ladder_file, ladder_gpu, ladder_table, table


@pytest.fixture
def root(tmp_path):
    """A checkout whose pages have markers, and results."""
    (tmp_path / "docs").mkdir()
    block = "<!-- {0} -->\n<!-- /{0} -->\n"
    (tmp_path / "README.md").write_text("# Title\n\n" + block.format("ladder") + "\nThe end.\n")
    text = block.format("ladder") + "\n" + block.format("gpu")
    (tmp_path / "docs" / "benchmarks.md").write_text(text + "\n" + block.format("growth"))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "README.md").write_text(block.format("profile"))
    save(tmp_path / "results", {"benchmarks": entries()})
    return tmp_path


# the file


def test_rows_are_the_ladders_alone(tmp_path):
    found = ladder_file.read(save(tmp_path, {"benchmarks": entries()}))
    assert len(found) == sum(map(len, SECONDS.values()))
    row = ladder_file.by_group(found)[STEP]["fastprompt"]
    assert (row.median, row.ratio, row.ratio_range) == (5.0, 9.0, (7.5, 10.0))
    assert row.size == {"classes": 100, "shape": [8, 100]}
    assert row.machine == MACHINE
    assert (row.ceiling, row.limit, row.share_of_limit) == (9.6, "matmul", 0.781)


def test_a_file_that_is_not_a_ladder_is_refused(tmp_path):
    for found, says in (
        ({"rows": []}, "no list 'benchmarks'"),
        ({"benchmarks": []}, "no row of the ladder"),
        ({"benchmarks": entries()[:1] * 2}, "twice"),
    ):
        with pytest.raises(ValueError, match=says):
            ladder_file.read(save(tmp_path, found))
    lacking = entries()
    del lacking[0]["extra_info"]["ratio_to_eager"]
    with pytest.raises(ValueError, match=r"step/nap/c10 eager: .*no 'ratio_to_eager'"):
        ladder_file.rows_of(lacking)


def test_a_ratio_that_is_not_that_of_its_seconds_is_refused(tmp_path):
    found = entries()
    found[-2]["extra_info"]["ratio_to_eager"] *= 1.001
    with pytest.raises(ValueError, match=r"kernels/pgd_step/b8 fastprompt.*changed by hand"):
        ladder_file.read(save(tmp_path, {"benchmarks": found}))


# the tables


def test_the_short_table_has_the_slowest_size_of_each_thing():
    lines = ladder_table.short_table(ladder_file.by_group(rows())).splitlines()
    assert lines == [
        "| group | eager | eager-hoisted | eager-careful | fastprompt | by FLOPs | over hoisted | "
        "over careful | share of the limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| `{STEP}` | 45 s | 3.0x | 5.0x | **9.0x** | 9.6x | 3.0x | 1.8x | 78 % (matmul) |",
        f"| `{TEXT}` | 12.8 s |  |  | **16.0x** | 9.6x |  |  | 78 % (matmul) |",
        f"| `{PEER}` | 1.5 s (torchattacks) |  |  | **3.0x** | 9.6x |  |  | 78 % (matmul) |",
        f"| `{OP}` | 300 ms |  |  | **6.0x** | 9.6x |  |  | 78 % (matmul) |",
    ]


def test_an_operation_is_shown_at_the_size_that_its_sweep_starts_from():
    swept = {OP: SECONDS[OP], f"{OP}-k32": {"eager": [0.9], "fastprompt": [0.2]}}
    assert list(ladder_table.telling(ladder_file.by_group(rows(swept)))) == [OP]


def test_the_whole_table_has_every_group_and_spreads():
    text = ladder_table.whole_table(ladder_file.by_group(rows()))
    assert [line.split("`")[1] for line in text.splitlines()[2:]] == list(SECONDS)
    assert "78 % (matmul) | 5 s | 7.5x to 10.0x | 3e-06 |" in text
    # eager is left out by name, and not made up
    assert f"| `{MANY}` | 300 s (eager-hoisted) |  |  | **2.0x** |" in text
    assert f"| `{BOX}` | 30 µs |" in text


def test_what_is_not_counted_stays_empty():
    found = rows(ceiling=None, share_of_limit=None, limit=None, largest_error=None)
    groups = ladder_file.by_group(found)
    assert ladder_table.short_table(groups).splitlines()[-1] == (
        f"| `{OP}` | 300 ms |  |  | **6.0x** |  |  |  |  |"
    )
    assert "| 50 ms | 6.0x to 6.0x |  |" in ladder_table.whole_table(groups)


def test_figures_keep_three_digits_and_ratios_one_place():
    durations = (39.27, 150.4, 0.9996, 0.0123, 4.2e-5)
    assert [ladder_table.duration(s) for s in durations] == [
        *("39.3 s", "150 s", "1 s", "12.3 ms", "42 µs")
    ]
    ratios = (0.854, 0.994, 0.996, 1.0, 8.26, 99.4, 99.6, 123.4, None)
    assert [ladder_table.times(r) for r in ratios] == [
        *("0.85x", "0.99x", "1.0x", "1.0x", "8.3x", "99.4x", "100x", "123x", "")
    ]


def test_a_machine_has_its_own_caption_and_table(tmp_path):
    save(tmp_path, {"benchmarks": entries()})
    save(tmp_path, {"benchmarks": entries(processor="Another", card="A card")}, "a-card")
    text = table.wanted(tmp_path)[table.PAGE]["ladder"]
    first, second = text.index("A card, Another, 2 threads"), text.index("A processor, 2 threads")
    assert first < second
    assert "[a-card/ladder.json](../benchmarks/results/a-card/ladder.json)" in text
    assert text.count("| group |") == 2


# the pages


def test_written_pages_are_those_of_the_results(root, capsys):
    assert table.main(False, root, root / "results") == 1
    assert f"left out: | `{STEP}` | 45 s |" in capsys.readouterr().err
    assert table.main(True, root, root / "results") == 0
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Title\n\n<!-- ladder -->\n\nA processor, 2 threads, torch 2.15.0")
    assert readme.endswith("an A100.\n\n<!-- /ladder -->\n\nThe end.\n")
    assert capsys.readouterr().out.strip() in readme
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "](benchmarks.svg)" in page
    before = {p: p.read_bytes() for p in root.rglob("*.*") if p.is_file()}
    assert table.main(True, root, root / "results") == 0
    assert {p: p.read_bytes() for p in before} == before  # the drawing, too


def test_a_wrong_page_is_named(root, capsys):
    table.write(root, root / "results")
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("**9.0x**", "**9.9x**"))
    assert table.main(False, root, root / "results") == 1
    said = capsys.readouterr().err.splitlines()
    assert f"README.md, ladder: no committed result says: | `{STEP}` | 45 s" in said[0]
    assert "**9.9x**" in said[0]
    assert said[1].startswith(f"README.md, ladder: left out: | `{STEP}`")
    assert len(said) == 3


def test_a_changed_result_is_named_on_every_page_and_the_drawing(root):
    table.write(root, root / "results")
    save(root / "results", {"benchmarks": entries(slower(STEP, "fastprompt", 0.5))})
    found = table.problems(root, root / "results")
    assert all(STEP in problem for problem in found[:-1])
    assert {problem.split(",")[0] for problem in found[:-1]} == {"README.md", "docs/benchmarks.md"}
    assert found[-1] == "docs/benchmarks.svg: drawn from other results"


def test_growth_and_profile_are_put_in(root):
    point = {"batch": 8, "seconds": {"median": 2.0}, "deviation": 0.1, "within_30_percent": True}
    far = {**point, "batch": 64, "deviation": -0.4, "within_30_percent": False}
    slopes = {"seconds": {"fit": 0.97, "local": [0.9]}, "flops_model": {"fit": 1.0}}
    sweep = {
        "fixed": {"method": "nap", "model": "tiny-shapes"},
        "points": {"fastprompt": [point, far]},
        "exponents": {"fastprompt": slopes},
        "left_out": [],
    }
    save(root / "results", {"sweeps": {"batch": sweep}}, name="growth.json")
    shares = {"matrix products": 0.93, "all other": 0.07}
    profile = {"seconds": {"attack": 3.0, "backward": 1.0}, "shares": shares}
    save(root / "results", profile, name="profile.json")
    table.write(root, root / "results")
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| 0.97 | 0.90 | 1.00 | -40 % at 64 | 64 |" in page
    notes = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert "| attack | 3.00 | 75 % |" in notes
    assert "| matrix products | 93 % |" in notes
    assert not table.problems(root, root / "results")


def test_a_row_twice_is_found(root):
    table.write(root, root / "results")
    page = root / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if TEXT in line)
    page.write_text(text.replace(line, f"{line}\n{line}"), encoding="utf-8")
    (problem,) = table.problems(root, root / "results")
    assert "another order" in problem


def test_a_page_without_markers_is_named(root):
    (root / "README.md").write_text("# Title\n")
    table.write(root, root / "results")
    (problem,) = table.problems(root, root / "results")
    assert problem.startswith("README.md: there is no <!-- ladder -->")


def test_the_pages_are_those_of_the_committed_files():
    assert not table.problems()


def test_the_command_line():
    assert table.arguments([])["write_pages"] is False
    assert table.arguments(["--write"])["write_pages"] is True


# a GPU


def test_without_a_gpu_nothing_is_claimed(tmp_path):
    lines = ladder_gpu.gpu_table(tmp_path).splitlines()
    demands = [line for line in lines[2:] if line.startswith("|")]
    assert len(demands) == 5
    assert all(line.endswith("| not yet measured |") for line in demands)
    assert lines[-1].endswith("5.86 s a step, on an A100.")


def test_gpu_results_are_read(tmp_path):
    step = {
        "classes": 1000,
        "eager": {"median": 12.0},
        "fastprompt": {"median": 2.5},
        "fastprompt, bf16": {"median": 0.5},
        "fastprompt, bf16, compiled": {"median": 0.3},
        "eager-careful": {"median": 0.6},
    }
    attack = {
        "batch": 256,
        "compile=True, graph=False": {"matmul_share": 0.41},
        "compile=True, graph=True": {"matmul_share": 0.52},
    }
    save(tmp_path, {"card": "A card", "result": step}, "a-card", "gpu-step.json")
    save(tmp_path, {"card": "A card", "result": attack}, "a-card", "gpu-attack.json")
    save(tmp_path, {"card": "Broken", "error": "out of memory"}, "b-card", "gpu-step.json")
    lines = ladder_gpu.gpu_table(tmp_path).splitlines()[2:7]
    assert [line.split(" | ")[-1].removesuffix(" |") for line in lines] == [
        "4.8x, 2500 ms a step (A card)",
        "40.0x, 300 ms a step (A card)",
        "not yet measured",  # with TF32
        "2.0x, 300 ms a step (A card)",
        "52 % (A card)",
    ]


# the drawing


def test_the_drawing_shows_machines_rungs_and_growth(root):
    step = {
        "eager": [{"classes": c, "seconds": c / 10, "peak_bytes": c << 24} for c in (10, 100)],
        "fastprompt": [
            {"classes": 10, "seconds": 0.5, "peak_bytes": 1 << 28},
            {"classes": 1000, "seconds": 4.0, "peak_bytes": None},
        ],
    }
    found = {"sweeps": {}, "cost_against_classes": step}
    save(root / "results", found, name=growth_curves.FILE)
    table.write(root, root / "results")
    svg = (root / "docs" / "benchmarks.svg").read_text(encoding="utf-8")
    said = table.drawn(svg)
    assert f"cpu-2-cores, {STEP}: eager-hoisted 3.0x, eager-careful 5.0x, fastprompt 9.0x" in said
    assert "cpu-2-cores, eager: 10 classes 1 s 160 MiB; 100 classes 10 s" in said
    assert "cpu-2-cores, fastprompt: 10 classes 0.5 s 256 MiB; 1000 classes 4 s" in said
    drawing = ElementTree.fromstring(svg)
    texts = [re.sub(r"\s+", " ", "".join(e.itertext())) for e in drawing.iter() if "text" in e.tag]
    assert {STEP, "9.0x", "fastprompt", "eager-hoisted", "classes"} <= set(map(str.strip, texts))
    assert "http" not in svg.replace('="http://www.w3.org/', "")
    del step["eager"][0]
    save(root / "results", found, name=growth_curves.FILE)
    assert table.problems(root, root / "results") == [
        "docs/benchmarks.svg: drawn from other results"
    ]
