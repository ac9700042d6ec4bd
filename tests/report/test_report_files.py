"""The tables beside the page, and what is refused."""

import csv
import io
import json
import re

import pytest
from helpers.made_up import bare, evaluation, examples, full_run, row, run

from fastprompt._utils.printable import printable
from fastprompt.cli.main import main
from fastprompt.cli.report import report
from fastprompt.evaluation import Evaluation
from fastprompt.report import write_report
from fastprompt.report.comparison import compare
from fastprompt.report.runs import read_runs
from fastprompt.report.seeds import group_runs, over_seeds
from fastprompt.report.tables import csv_text, latex_text, markdown_text


def beside(page, suffix):
    return page.with_suffix(suffix).read_text("utf-8")


def test_csv_holds_the_rows_numbers(run):
    page = write_report(run)
    assert page == run / "report.html"
    lines = list(csv.DictReader(beside(page, ".csv").splitlines()))
    rows = Evaluation.load(run / "result.json").rows
    assert len(lines) == len(rows)
    for line, own in zip(lines, rows, strict=True):
        for key in ("eps", "accuracy", "seconds"):
            assert float(line[key]) == own[key]
        for key in ("n", "correct", "stalled", "forwards", "gradients"):
            assert int(line[key]) == own[key]
        assert [float(line["low"]), float(line["high"])] == own["interval"]
        assert (line["model"], line["attack"], line["path"]) == (
            *(own["model"], own["attack"]),
            own["path"],
        )
        assert (line["run"], line["trusted"]) == (run.name, str(own["trusted"]))


def test_markdown_table_has_equal_columns_and_escapes(bare, run):
    table = [x for x in beside(write_report(bare), ".md").splitlines() if x.startswith("|")]
    assert table[0] == "| method | clean | pgd-5, 4/255 (adaptive) |"
    assert table[2] == "| m | 75.0 [30.1, 95.4] | 50.0 [15.0, 85.0] |"
    text = beside(write_report(run), ".md")
    table = [x for x in text.splitlines() if x.startswith("|")]
    assert len({x.count(" | ") for x in table}) == 1
    assert len(table) == 2 + 1 + 9
    assert "shapes\\_&\\_co" in text


def test_latex_table_escapes_and_has_equal_columns(tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    rows = [
        row(name, attack, path, eps, flags)
        for attack, path, eps, flags in (
            ("clean", "none", 0.0, "1110"),
            ("pgd-5", "transfer:a_b", 1 / 255, "1010"),
        )
        for name in ("R&D_100%", "[x] {#} $5 ~^ \\end | *")
    ]
    rows[-1] |= {"trusted": False, "reasons": ["50 % of it_is zero"]}
    evaluation(rows, data={}, models={}).save(folder / "result.json")
    text = beside(write_report(folder), ".tex")
    assert r"R\&D\_100\% &" in text
    assert r"{[}x] \{\#\} \$5 \textasciitilde{}\textasciicircum{} \textbackslash{}end" in text
    assert r"transfer: a\_b" in text
    assert r"50 \% of it\_is zero" in text
    assert "$^\\dagger$" in text
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [x for x in body.splitlines() if x.endswith("\\\\")]
    assert {x.replace(r"\&", "").count("&") for x in lines} == {2}
    assert len(lines) == 3 + 2
    assert text.count(r"\begin{") == text.count(r"\end{")


def test_many_columns_go_down_the_page(run):
    text = beside(write_report(run), ".tex")
    assert r"\begin{tabular}{lllrr}" in text
    assert "pgd-20 & adaptive & 4/255 & " in text


def tables_of(folder):
    runs = read_runs([folder])
    methods = over_seeds(compare(runs), group_runs(runs))
    return csv_text(runs), markdown_text(methods), latex_text(methods)


def named(folder, *names):
    """A folder with a model of each name."""
    folder.mkdir()
    rows = [row(name, "clean", "none", 0.0, "1101") for name in names]
    evaluation(rows, data={"name": "@data\x1b[2J\n=1"}, models={}).save(folder / "result.json")
    return folder


@pytest.mark.parametrize("first", [*"=+-@\t\r\n", "\uff1d"])
def test_no_cell_of_the_csv_is_a_formula(tmp_path, first):
    name = f"{first}cmd|' /C calc'!A0"
    (line,) = csv.DictReader(io.StringIO(tables_of(named(tmp_path / "-r", name))[0]))
    assert line["model"] == "'" + printable(name)
    assert line["run"] == "'-r"
    assert line["data"] == r"'@data\x1b[2J\n=1"
    assert float(line["accuracy"]) == 0.75  # numbers stay numbers


def test_tables_escape_control_characters_and_markup(tmp_path):
    names = ("a\x1b[31m\u202eb\x00", "&lt;b&gt; $x$ ~~y~~ @z a@b", "one\n| two \\| [l](u) <i>")
    for text in (texts := tables_of(named(tmp_path / "r", *names))):
        assert not set("\x1b\u202e\x00\r") & set(text)
    _, text, tex = texts
    rows = [x for x in text.splitlines() if x.startswith("|")]
    assert len(rows) == 2 + len(names)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", x)) == 3 for x in rows)
    assert r"\&lt;b\&gt; \$x\$ \~\~y\~\~ \@z a@b" in text
    assert r"one \| two \\\| \[l\](u) \<i\>" in text
    assert r"a\textbackslash{}x1b{[}31m\textbackslash{}u202eb" in tex


def test_untrusted_numbers_carry_a_mark(tmp_path):
    page = write_report(full_run(tmp_path / "bad", sound=False))
    for suffix, mark in ((".md", "†"), (".tex", "$^\\dagger$")):
        text = beside(page, suffix)
        assert text.count(mark) == 2 + 2  # a model, a number, a note for each
        assert "no usable gradient for 7 images" in text


def test_a_folder_of_seeds_stands_for_its_runs(tmp_path):
    for seed in (0, 1):
        full_run(tmp_path / "many" / f"seed-{seed}", seed=seed)
    (tmp_path / "many" / "seeds.json").write_text(json.dumps({"seeds": [0, 1]}))
    text = beside(write_report(tmp_path / "many"), ".csv")
    assert {line.split(",")[0] for line in text.splitlines()[1:]} == {"seed-0", "seed-1"}


def test_a_damaged_list_of_seeds_is_refused(tmp_path):
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": ["0/../../elsewhere"]}))
    with pytest.raises(ValueError, match=r"seeds\.json.*damaged"):
        write_report(tmp_path)


def nothing_new(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_run_without_a_result_is_refused(tmp_path, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty .*result\.json.*`fastprompt evaluate"):
        write_report([run, empty], tmp_path / "out.html")
    with pytest.raises(FileNotFoundError, match=r"^runs: .*nowhere .*folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"^runs: .*result\.json .*folder"):
        write_report(run / "result.json")
    with pytest.raises(ValueError, match=r"^runs .*empty"):
        write_report([])
    assert nothing_new(tmp_path) == ["empty", "nap-run"]
    assert not list(empty.iterdir())


def cut(folder):
    path = folder / "result.json"
    path.write_text(path.read_text()[:-200])


def old(folder):
    (folder / "result.json").write_text('{"rows": []}')


def no_rows(folder):
    Evaluation(rows=[]).save(folder / "result.json")


def bad_row(folder):
    found = Evaluation.load(folder / "result.json")
    del found.rows[0]["interval"]
    found.save(folder / "result.json")


def bad_flags(folder):
    found = Evaluation.load(folder / "result.json")
    found.rows[2]["flags"] += "1"
    found.save(folder / "result.json")


def bad_check(folder):
    found = Evaluation.load(folder / "result.json")
    found.sanity[0]["verdict"] = None
    found.save(folder / "result.json")


def bad_config(folder):
    (folder / "config.json").write_text("[")


def bad_images(folder):
    (folder / "examples.safetensors").write_bytes(b"no tensors")


def other_images(folder):
    from safetensors.torch import load_file

    from fastprompt._utils.files import write_tensors

    examples(folder, 13)
    tensors = load_file(folder / "examples.safetensors")
    number = next(k for k in tensors if k.startswith("adv."))
    tensors[number] = tensors[number][:, :, :-1]
    write_tensors(folder / "examples.safetensors", tensors, {"kind": "examples"})


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (cut, "result.json .*JSON"),
        (old, "result.json .*format.*evaluate"),
        (no_rows, "result.json .*no rows"),
        (bad_row, r"rows\[0\]\.interval .*evaluate"),
        (bad_flags, r"rows\[2\]\.flags .*evaluate"),
        (bad_check, r"sanity\[0\]\.verdict .*evaluate"),
        (bad_config, "config.json .*JSON"),
        (bad_images, "examples.safetensors .*safetensors file"),
        (other_images, "examples.safetensors .*result.json"),
    ],
)
def test_damage_is_told_and_nothing_is_written(run, damage, match):
    damage(run)
    before = nothing_new(run)
    with pytest.raises(ValueError, match=match):
        write_report(run)
    assert nothing_new(run) == before


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("rows", 1, "forwards"), "x"),
        (("rows", 1, "n"), 0),
        (("rows", 1, "flags"), "2" * 120),
        (("rows", 1, "fell_at", "early"), 3),
        (("sanity",), None),
        (("data", "labels", 0), None),
        (("data", "indices"), 5),
        (("data", "classnames"), {"a": 1}),
        (("models", "tuned"), None),
        (("diagnostics", "tuned", "eps"), None),
        (("diagnostics", "tuned", "routing"), {}),
        (("diagnostics", "tuned", "routing", "clean", 0), [0.5]),
        (("diagnostics", "tuned", "routing", "classes"), ["one"]),
        (("diagnostics", "tuned", "refiners", "clean", 0), None),
        (("diagnostics", "tuned", "refiners", "layers"), [1]),
    ],
)
def test_any_damaged_part_is_named(run, keys, value):
    path = run / "result.json"
    found = json.loads(path.read_text())
    inner = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(found))
    before = nothing_new(run)
    first = f"{keys[0]}[{keys[1]}]" if keys[0] == "rows" else ".".join(map(str, keys[:2]))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {first}") + ".*evaluate"):
        write_report(run)
    assert nothing_new(run) == before


def test_out_names_the_page(run, tmp_path):
    page = write_report([run], tmp_path / "made" / "up.html")
    assert nothing_new(page.parent) == ["up.csv", "up.html", "up.md", "up.tex"]
    for out in (tmp_path / "report.csv", tmp_path):
        with pytest.raises(ValueError, match=r"^out .*\.html"):
            write_report([run], out)


def test_several_runs_write_into_the_current_folder(run, tmp_path, monkeypatch):
    other = full_run(tmp_path / "other", "ampt", 3)
    monkeypatch.chdir(tmp_path)
    assert write_report([run, other]).resolve() == tmp_path / "report.html"


def test_the_command_writes_and_says_where(run, tmp_path, capsys):
    assert report([str(run), "--out", str(tmp_path / "x.html")]) == 0
    said = capsys.readouterr().out
    assert f"report: {tmp_path / 'x.html'}" in said
    assert "x.csv, x.md, x.tex" in said
    with pytest.raises(SystemExit) as stopped:
        report([])
    assert stopped.value.code == 2
    with pytest.raises(FileNotFoundError):
        report([str(tmp_path)])


def test_a_run_whose_pictures_are_gone_is_reported_without_them(tmp_path, caplog):
    folder = full_run(tmp_path / "nap-run")
    assert 'id="images"' in write_report(folder).read_text("utf-8")
    assert not caplog.messages
    gone = folder / "examples.safetensors"
    gone.unlink()
    assert 'id="images"' not in write_report(folder).read_text("utf-8")
    (message,) = caplog.messages
    assert f"{gone} does not exist; evaluate the run again" in message


def test_no_control_character_of_a_folder_or_file_reaches_the_terminal(tmp_path, capsys):
    folder = named(tmp_path / "r\x1b[2J\u202e\nreport: fake", "m")
    assert main(["report", str(folder)]) == 0
    (folder / "result.json").write_text("[")
    assert main(["report", str(folder)]) == 2
    said = "".join(capsys.readouterr())
    assert not set("\x1b\u202e") & set(said)
    assert said.count(r"r\x1b[2J\u202e") == 2
    assert [line.split(":")[0] for line in said.splitlines()] == ["report", "tables", "error"]
