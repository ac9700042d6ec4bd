"""Pages and drawing say what the committed files say."""

import re
from xml.etree import ElementTree

import pytest
from helpers.ladder_files import (
    STEP,
    TEXT,
    entries,
    save,
    slower,
)

from benchmarks import pages
from benchmarks.accuracy.methods import photos_page
from benchmarks.growth import curves as growth_curves


@pytest.fixture
def root(tmp_path):
    """A checkout whose pages have markers, and results."""
    (tmp_path / "docs" / "guides").mkdir(parents=True)
    block = "<!-- {0} -->\n<!-- /{0} -->\n"
    text = f"# Title\n\n{block.format(photos_page.SHORT)}\n{block.format('ladder')}\nThe end.\n"
    (tmp_path / "README.md").write_text(text)
    text = block.format("ladder") + "\n" + block.format("gpu")
    (tmp_path / "docs" / "benchmarks.md").write_text(text + "\n" + block.format("growth"))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "README.md").write_text(block.format("profile"))
    (tmp_path / "docs" / "step_budget.md").write_text(block.format("budget"))
    text = "\n".join(block.format(name) for name in ("sent", "scaling", "workers"))
    (tmp_path / "docs" / "guides" / "many_devices.md").write_text(text)
    (tmp_path / "docs" / "guides" / "predict.md").write_text(block.format("predict"))
    (tmp_path / "docs" / "guides" / "export.md").write_text(block.format("int8"))
    for page, name in (("protocols", "caltech101"), ("robustness", "autoattack")):
        (tmp_path / "docs" / "guides" / f"{page}.md").write_text(block.format(name))
    blocks = "\n".join(block.format(name) for name in photos_page.blocks(tmp_path))
    for page in ("results_photos", "guides/choosing"):
        (tmp_path / "docs" / f"{page}.md").write_text(blocks)
    save(tmp_path / "results", {"benchmarks": entries()})
    return tmp_path


def test_a_machine_has_its_own_caption_and_table(tmp_path):
    save(tmp_path, {"benchmarks": entries()})
    save(tmp_path, {"benchmarks": entries(processor="Another", card="A card")}, "a-card")
    text = pages.wanted(tmp_path)[pages.PAGE]["ladder"]
    first, second = text.index("A card, Another, 2 threads"), text.index("A processor, 2 threads")
    assert first < second
    assert "[a-card/ladder.json](../benchmarks/results/a-card/ladder.json)" in text
    assert text.count("| group |") == 2


def test_written_pages_are_those_of_the_results(root, capsys):
    assert pages.main(False, root, root / "results") == 1
    assert f"missing from the page: | `{STEP}` | 45 s |" in capsys.readouterr().err
    assert pages.main(True, root, root / "results") == 0
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# Title\n\n<!-- {photos_page.SHORT} -->\n\nNot yet measured.")
    assert "\n\n<!-- ladder -->\n\nA processor, 2 threads, torch 2.15.0" in readme
    assert readme.endswith("| **6.0x** | 78 % (matmul) |\n\n<!-- /ladder -->\n\nThe end.\n")
    assert capsys.readouterr().out.strip() in readme
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "](benchmarks.svg)" in page
    before = {p: p.read_bytes() for p in root.rglob("*.*") if p.is_file()}
    assert pages.main(True, root, root / "results") == 0
    assert {p: p.read_bytes() for p in before} == before  # the drawing, too


def test_a_wrong_page_is_named(root, capsys):
    pages.write(root, root / "results")
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("**9.0x**", "**9.9x**"))
    assert pages.main(False, root, root / "results") == 1
    said = capsys.readouterr().err.splitlines()
    assert f"README.md, ladder: not in the committed results: | `{STEP}` | 45 s" in said[0]
    assert "**9.9x**" in said[0]
    assert said[1].startswith(f"README.md, ladder: missing from the page: | `{STEP}`")
    assert len(said) == 3


def test_a_changed_result_is_named_on_every_page_and_the_drawing(root):
    pages.write(root, root / "results")
    save(root / "results", {"benchmarks": entries(slower(STEP, "fastprompt", 0.5))})
    found = pages.problems(root, root / "results")
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
    pages.write(root, root / "results")
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| 0.97 | 0.90 | 1.00 | -40 % at 64 | 64 |" in page
    notes = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert "| attack | 3.00 | 75 % |" in notes
    assert "| matrix products | 93 % |" in notes
    assert not pages.problems(root, root / "results")


def test_a_row_twice_is_found(root):
    pages.write(root, root / "results")
    page = root / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if TEXT in line)
    page.write_text(text.replace(line, f"{line}\n{line}"), encoding="utf-8")
    (problem,) = pages.problems(root, root / "results")
    assert "another order" in problem


def test_a_page_without_markers_is_named(root):
    (root / "README.md").write_text("# Title\n")
    pages.write(root, root / "results")
    ladder, photos = pages.problems(root, root / "results")
    assert ladder.startswith("README.md: there is no <!-- ladder -->")
    assert photos.startswith("README.md: there is no <!-- photos-short -->")


def test_the_pages_are_those_of_the_committed_files():
    assert not pages.problems()


def test_the_command_line():
    assert pages.arguments([])["write_pages"] is False
    assert pages.arguments(["--write"])["write_pages"] is True


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
    pages.write(root, root / "results")
    svg = (root / "docs" / "benchmarks.svg").read_text(encoding="utf-8")
    said = pages.drawn(svg)
    assert f"cpu-2-cores, {STEP}: eager-hoisted 3.0x, eager-careful 5.0x, fastprompt 9.0x" in said
    assert "cpu-2-cores, eager: 10 classes 1 s 160 MiB; 100 classes 10 s" in said
    assert "cpu-2-cores, fastprompt: 10 classes 0.5 s 256 MiB; 1000 classes 4 s" in said
    drawing = ElementTree.fromstring(svg)
    texts = [re.sub(r"\s+", " ", "".join(e.itertext())) for e in drawing.iter() if "text" in e.tag]
    assert {STEP, "9.0x", "fastprompt", "eager-hoisted", "classes"} <= set(map(str.strip, texts))
    assert "http" not in svg.replace('="http://www.w3.org/', "")
    del step["eager"][0]
    save(root / "results", found, name=growth_curves.FILE)
    assert pages.problems(root, root / "results") == [
        "docs/benchmarks.svg: drawn from other results"
    ]
