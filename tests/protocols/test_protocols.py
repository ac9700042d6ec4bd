"""Protocols end to end on a cut of Caltech101 and on small sets in CoOp's layout."""

import csv
import errno
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import processes
from helpers.coop_trees import (
    IDS,
    fill,
    write_classnames,
    write_imagenet,
    write_pickle,
    write_split,
)
from helpers.fake_ray import installed
from helpers.kills import Strike, attempt, contents, torture
from helpers.models import small_model
from PIL import Image

from fastprompt import APTTuner, AutoTuner, evaluate, load_data, protocols
from fastprompt._utils import files
from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.clip.load import load_clip
from fastprompt.data.coop_sets import SETS
from fastprompt.evaluation import Evaluation
from fastprompt.protocols import finishing, make_plan, results
from fastprompt.protocols import plan as plan_module
from fastprompt.protocols.costs import Cost, cost_of, describe
from fastprompt.protocols.tables import csv_text, latex, markdown

CUT = Path(__file__).parents[1] / "data" / "coop"
LITTLE = {"epochs": 1, "steps": 1, "n_ctx": 2, "lr": 0.5, "warmup_epochs": 0, "precision": "fp32"}
SMALL = {
    "clip": "tiny-shapes",
    "eps": "8/255",
    "attacks": "pgd-1",
    "limit": 8,
    "sanity": "off",
    "seeds": (1, 2),
    "settings": {"all": LITTLE},
}
CALTECH = {"data": "coop:Caltech101", "root": CUT, "shots": (1,)}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


def plan(protocol, methods="zero-shot,coop,apt", **options):
    return make_plan(protocol, methods, **{**SMALL, **options})


def run(folder, protocol, methods="zero-shot,coop,apt", resume=False, **options):
    made = plan(protocol, methods, **options)
    return protocols.execute(made, folder, resume=resume, progress=False)


@pytest.fixture
def two(tmp_path):
    """A root with two sets of three classes each."""
    for name in ("Caltech101", "OxfordPets"):
        write_split(tmp_path / "data", name)
    return {"root": tmp_path / "data", "data": "coop:Caltech101,coop:OxfordPets", "shots": (1,)}


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet with three classes, and ImageNet-A with two of them."""
    write_imagenet(tmp_path / "data")
    shifted = tmp_path / "data" / SETS["ImageNetA"].folder
    write_classnames(shifted)
    fill(shifted / "imagenet-a", (f"{wnid}/{i}.jpg" for wnid in (IDS[2], IDS[0]) for i in range(2)))
    return {
        "root": tmp_path / "data",
        "data": ("coop:ImageNet", "coop:ImageNetA"),
        "shots": (1,),
    }


# ---- the four protocols --------------------------------------------------------------------------


def test_few_shot_takes_each_number_of_shots(tmp_path):
    options = {**CALTECH, "shots": None, "seeds": (1,)}
    table = run(tmp_path / "out", "few-shot", "zero-shot,apt", **options)
    assert table.columns == ["1", "2", "4", "8", "16", "all"]
    assert [(row.method, row.accuracy) for row in table.rows] == [
        ("zero-shot", "clean"),
        ("apt", "clean"),
        ("zero-shot", "pgd-1 at 8/255"),
        ("apt", "pgd-1 at 8/255"),
    ]
    zero_shot = table.rows[0]
    assert len({zero_shot.mean(column) for column in table.columns}) == 1
    config = json.loads(
        (tmp_path / "out/cells/apt-Caltech101-2-shots-seed-1/config.json").read_text()
    )
    assert (config["config"]["seed"], config["data"]["seed"], config["data"]["shots"]) == (1, 1, 2)
    # the cut has 4 training images of each class
    few = [note for note in table.notes if "have fewer than" in note]
    assert [note.split("than ")[1].split(" ")[0] for note in few] == ["8", "16"]
    assert "40 classes" in few[0]
    assert "all are taken, as by CoOp" in few[0]


def test_base_to_new_judges_each_half_among_itself(tmp_path):
    table = run(tmp_path / "out", "base-to-new", "coop", **CALTECH)
    assert table.columns == ["base", "new", "H"]
    cell = tmp_path / "out/cells/coop-Caltech101-1-shots-seed-2"
    tuned = json.loads((cell / "config.json").read_text())
    base, new = (
        Evaluation.load(cell / "evaluations" / half / "result.json").data
        for half in ("base", "new")
    )
    data = load_data("coop:Caltech101", root=CUT)
    assert tuned["classnames"] == base["classnames"] == data.classnames[:20]
    assert new["classnames"] == data.classnames[20:]
    for row in table.rows:
        each = [
            statistics.harmonic_mean([row.values["base"][s], row.values["new"][s]]) for s in (1, 2)
        ]
        means = [statistics.fmean(row.values[half].values()) for half in ("base", "new")]
        assert row.mean("H") == pytest.approx(statistics.harmonic_mean(means))
        assert row.std("H") == pytest.approx(statistics.stdev(each))


def test_several_sets_have_an_average(tmp_path, two):
    table = run(tmp_path / "out", "few-shot", "coop", **two)
    assert [row.data for row in table.rows][::2] == ["Caltech101", "OxfordPets", "average"]
    first, second, mean = (
        table.mean("coop", "1", data=d) for d in dict.fromkeys(r.data for r in table.rows)
    )
    assert mean == pytest.approx((first + second) / 2)


def test_cross_dataset_encodes_the_class_names_of_the_others(tmp_path, two):
    table = run(tmp_path / "out", "cross-dataset", "zero-shot,apt", **two)
    assert table.columns == ["Caltech101", "OxfordPets", "average"]
    cell = tmp_path / "out/cells/apt-Caltech101-1-shots-seed-1"
    assert not list((tmp_path / "out/cells").glob("*OxfordPets*"))
    found = Evaluation.load(cell / "evaluations/OxfordPets/result.json")
    tuner = APTTuner.load(cell)
    data = load_data("coop:OxfordPets", root=two["root"]).for_model(tuner.clip)
    assert found.data["classnames"] == data.classnames != tuner.classnames
    again = evaluate(
        tuner.classifier_for(data.classnames),
        data.test,
        "pgd-1",
        "8/255",
        limit=8,
        sanity="off",
        batch=100,
    )
    assert [row["flags"] for row in found.rows] == [row["flags"] for row in again.rows]


def test_domain_shift_takes_the_classes_of_a_variant(tmp_path, imagenet):
    table = run(tmp_path / "out", "domain-shift", "zero-shot,apt", **imagenet)
    assert table.columns == ["ImageNet", "ImageNetA", "average"]
    cell = tmp_path / "out/cells/apt-ImageNet-1-shots-seed-1"
    found = Evaluation.load(cell / "evaluations/ImageNetA/result.json")
    assert found.data["classnames"] == ["tench", "sunglasses"]
    # its validation images are its test images, which must not select the prompts
    assert not (cell / "best.safetensors").exists()


# ---- stopped and resumed -------------------------------------------------------------------------


def test_a_finished_plan_is_read_again(tmp_path, monkeypatch):
    run(tmp_path / "out", "base-to-new", "zero-shot,coop", **CALTECH)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(APTTuner, "fit", None)
    monkeypatch.setattr(finishing, "evaluate", None)
    run(tmp_path / "out", "base-to-new", "zero-shot,coop", resume=True, **CALTECH)
    assert contents(tmp_path / "out") == before


def _protocol(two, runner=None):
    options = {**SMALL, **two, "seeds": (1,), "limit": 4}
    made = make_plan("cross-dataset", "zero-shot,coop,apt", **options)
    how = {"resume": True, "progress": False, "runner": runner}
    return lambda folder: protocols.execute(made, folder, **how)


@pytest.fixture(params=[None, "ray"], ids=["here", "workers"])
def runner(request, monkeypatch, tmp_path):
    """Cells in this process, or on workers, which compute in this process, too."""
    ray = installed(monkeypatch)
    # where a killed worker leaves its files
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield request.param
    assert ("do" in ray.calls) == (request.param == "ray")


def units_of(**options):
    """What workers are asked about their bfloat16 units; None if nothing."""
    made = plan("few-shot", "zero-shot,apt", **CALTECH, **options)
    return finishing.Cells(made).facts().get("bfloat16 units")


def test_workers_are_asked_for_bfloat16_units_where_a_cell_depends_on_them(request):
    auto = {"all": {**LITTLE, "precision": "auto"}}
    published = {"scoring": "published", "attacks": None, "eps": None}
    assert units_of(**published) is None
    assert units_of(**published, settings=auto) == "no"
    assert units_of() == "no"  # strict: attacks search in bfloat16 if possible
    request.getfixturevalue("bf16_units")
    assert units_of() == "yes"


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="a fork with CUDA cannot run it")


@POSIX
@NO_CUDA
def test_killed_between_cells_and_resumed(two, tmp_path, runner):
    made = _protocol(two, runner)
    made(tmp_path / "whole")
    hits = [attempt(made, tmp_path / "out", Strike(moment=m)) for m in (60, 200, 340)]
    assert any(hits)
    assert not attempt(made, tmp_path / "out", Strike())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@POSIX
@NO_CUDA
@pytest.mark.timeout(900)
def test_killed_anywhere_and_resumed(two, tmp_path):
    torture(_protocol(two), tmp_path, 40, "protocol")


@pytest.mark.parametrize("moment", [0, 1, 5, 11, 23])
def test_a_full_disk_is_one_message_and_resumes(two, tmp_path, monkeypatch, moment):
    options = {**two, "seeds": (1,)}
    run(tmp_path / "whole", "few-shot", "zero-shot,coop", **options)
    real, writes = files._flush, []

    def full(file):
        writes.append(1)
        if len(writes) > moment:
            file.truncate(file.tell() - 1)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(OSError, match=r"disk is full; free some space, then resume") as error:
        run(tmp_path / "out", "few-shot", "zero-shot,coop", **options)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(files, "_flush", real)
    run(tmp_path / "out", "few-shot", "zero-shot,coop", resume=True, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_of_the_command(two, tmp_path, monkeypatch, capsys):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = files._flush
    where = [f"--data={two['data']}", f"--root={two['root']}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(files, "_flush", full)
    assert main(["protocol", "few-shot", *COMMAND, *where]) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if "space" in x or "rror" in x]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert said[0].endswith(f"disk is full; free some space, then resume {tmp_path / 'out'}")
    monkeypatch.setattr(files, "_flush", real)
    assert main(["protocol", "few-shot", *COMMAND, *where]) == 0


@POSIX
def test_a_second_process_is_told(two, tmp_path):
    with (
        processes.locking(tmp_path / "out"),
        pytest.raises(BlockingIOError, match=r"^out: another process is writing"),
    ):
        run(tmp_path / "out", "few-shot", "zero-shot", **two)


def test_another_plan_in_the_folder_says_what_differs(two, tmp_path):
    run(tmp_path / "out", "few-shot", "zero-shot", **two)
    with pytest.raises(FileExistsError, match=r"^out: .* already holds this plan: resume it"):
        run(tmp_path / "out", "few-shot", "zero-shot", **two)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"^out: .*seeds is \[1, 2\] there, \[3\] here"):
            run(tmp_path / "out", "few-shot", "zero-shot", resume, **{**two, "seeds": (3,)})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"^out: .*other files"):
        run(tmp_path / "other", "few-shot", "zero-shot", **two)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_pictures_that_have_changed_are_told(two, tmp_path):
    """Other lists of files before anything runs, other pictures of a list when they are judged."""
    out, sets = tmp_path / "out", two["root"] / SETS["Caltech101"].folder
    made = plan("few-shot", "zero-shot,apt", **two)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(APTTuner, "fit", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            protocols.execute(made, out, progress=False)
    (file,) = sets.glob("split_zhou_*.json")
    split = json.loads(file.read_text())
    (path,) = sets.rglob(split["test"][0][0])
    Image.new("RGB", (60, 60), (9, 9, 9)).save(path)
    with pytest.raises(ValueError, match=r"^data: the test images of coop:Caltech101 have changed"):
        run(out, "few-shot", "zero-shot,apt", True, **two)
    split["train"] = split["train"][1:]
    file.write_text(json.dumps(split))
    with pytest.raises(ValueError, match=r"^out: .* holds another plan: contents is"):
        run(out, "few-shot", "zero-shot,apt", True, **two)


def test_another_preset_is_another_plan(two, tmp_path, monkeypatch):
    """A later version's preset does not get among the cells of an earlier one."""
    out = tmp_path / "out"
    run(out, "few-shot", "zero-shot,apt", **two)
    monkeypatch.setattr(APTTuner, "presets", {"tiny-shapes": {"lr": 0.25}})
    with pytest.raises(ValueError, match=r"^out: .* holds another plan: presets is \{'apt':"):
        run(out, "few-shot", "zero-shot,apt", True, **two)


def test_a_few_shot_file_is_part_of_the_plan(two):
    before = plan("few-shot", "apt", **two).facts["contents"]
    split = json.loads(next(two["root"].rglob("split_zhou_Caltech101.json")).read_text())
    picked = {part: split[part][:1] for part in ("train", "val")}
    write_pickle(two["root"] / SETS["Caltech101"].folder, picked, 1, 2)
    after = plan("few-shot", "apt", **two).facts["contents"]
    assert before["coop:Caltech101"] != after["coop:Caltech101"]
    assert before["coop:OxfordPets"] == after["coop:OxfordPets"]


# ---- plan and cost -------------------------------------------------------------------------------


def test_the_cost_is_what_runs(two, tmp_path):
    options = {**two, "shots": (2,), "seeds": (1,), "limit": 4}
    options["settings"] = {"all": {**LITTLE, "epochs": 3, "batch": 4}}
    made = plan("cross-dataset", "zero-shot,apt,coop", **options)
    total = sum((cost_of(made, cell) for cell in made.cells), Cost())
    # 6 images in batches of 4; 4 test images of 2 sets, clean and attacked, by 3 classifiers
    assert (total.tunings, total.steps, total.images) == (2, 2 * 3 * 2, 3 * 2 * 4 * 2)
    assert f"{len(made.cells)} cells: 2 tunings of 12 optimizer steps" in describe(made)
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        real = torch.optim.SGD.step
        patch.setattr(torch.optim.SGD, "step", lambda *a, **k: steps.append(1) or real(*a, **k))
        adamw = torch.optim.AdamW.step
        patch.setattr(torch.optim.AdamW, "step", lambda *a, **k: steps.append(1) or adamw(*a, **k))
        protocols.execute(made, tmp_path / "out", progress=False)
    assert len(steps) == total.steps
    n = [
        row["n"]
        for path in (tmp_path / "out").rglob("result.json")
        for row in Evaluation.load(path).rows
    ]
    assert sum(n) == total.images


def test_published_coop_has_the_epochs_of_its_shots(two):
    options = {**two, "data": "coop:Caltech101", "seeds": (1,), "shots": (1, 2, 4, 8, 16, "all")}
    for own, wanted in (
        ({"published": True}, [50, 100, 100, 200, 200, 200]),
        ({"published": True, "epochs": 7}, [7] * 6),
        ({}, [6] * 6),  # the preset
    ):
        made = plan("few-shot", "coop", **{**options, "settings": {"coop": own}})
        assert [made.config_of(cell).epochs for cell in made.cells] == wanted
        # 3 to 18 images in one batch
        assert [cost_of(made, cell).steps for cell in made.cells] == wanted


def test_workers_decode_in_tuning_and_evaluation(two, tmp_path, monkeypatch):
    assert "workers" not in plan("few-shot", "zero-shot", **two).facts
    options = {**two, "workers": 2, "seeds": (1,), "data": "coop:Caltech101"}
    settings = {"all": LITTLE, "coop": {"workers": 0}}
    made = plan("few-shot", "zero-shot,coop,apt", **{**options, "settings": settings})
    assert (made.configs["coop"].workers, made.configs["apt"].workers) == (0, 2)
    given = []
    real = finishing.evaluate

    def spied(*args, workers, **kwargs):
        given.append(workers)
        return real(*args, **kwargs)

    monkeypatch.setattr(finishing, "evaluate", spied)
    run(tmp_path / "out", "few-shot", "zero-shot", **options)
    assert given == [2]
    with pytest.raises(ValueError, match=r"^workers must"):
        plan("few-shot", "zero-shot", **{**options, "workers": -1})


def test_labels_of_data_sets():
    short = protocols.cells.labels_of(["coop:DTD", "data/cars", "hf:x/y"])
    assert list(short.values()) == ["DTD", "cars", "y"]
    assert list(protocols.cells.labels_of(["coop:DTD", "DTD"]).values()) == ["coop:DTD", "DTD"]
    with pytest.raises(ValueError, match=r"^data must have distinct names"):
        protocols.cells.labels_of(["a:b", "a/b"])


BAD = [
    ("cross", {}, r"^unknown protocol 'cross': did you mean 'cross-dataset'"),
    ("few-shot", {"methods": "nop"}, r"^unknown method 'nop': did you mean 'nap'"),
    ("few-shot", {"methods": ""}, r"^unknown method ''"),
    ("few-shot", {"data": ()}, r"^data must not be empty"),
    ("cross-dataset", {}, r"^data must have a second set for cross-dataset"),
    ("domain-shift", {}, r"^data must have a second set for domain-shift"),
    ("few-shot", {"shots": (0,)}, r"^shots must be at least 1"),
    ("few-shot", {"shots": "all"}, r"^shots must be a list"),
    ("few-shot", {"seeds": (1, 1)}, r"^seeds must be distinct"),
    ("few-shot", {"seeds": ()}, r"^seeds must be distinct, and at least one"),
    ("few-shot", {"limit": 0}, r"^limit must be at least 1"),
    ("few-shot", {"attacks": "pgd"}, r"^unknown attack 'pgd'"),
    ("few-shot", {"scoring": "lenient"}, r"^unknown scoring 'lenient'"),
    ("few-shot", {"scoring": "published:tap"}, r"^unknown paper 'tap'"),
    ("few-shot", {"scoring": "strict:nap"}, r"^unknown scoring"),
    ("few-shot", {"settings": {"nop": {}}}, r"^unknown method in settings 'nop'"),
    ("few-shot", {"settings": {"apt": {"epoch": 1}}}, r"^unknown config key 'epoch'"),
    ("few-shot", {"settings": {"apt": {"seed": 1}}}, r"^settings: the protocol sets the seed"),
    (
        "base-to-new",
        {"settings": {"apt": {"class_specific": True}}},
        r"^settings: apt has class-specific contexts",
    ),
    ("few-shot", {"data": "coop:DTD"}, r"^data: coop:DTD needs"),
]


def test_what_would_fail_after_hours_is_refused_before(imagenet):
    specific = {"settings": {"apt": {"class_specific": True}}}
    with pytest.raises(ValueError, match=r"^settings: apt has class-specific contexts"):
        plan("domain-shift", "apt", **imagenet, **specific)
    same = {**imagenet, "data": ("coop:ImageNet",)}
    assert plan("few-shot", "apt", **same, **specific)
    patient = {"settings": {"apt": {"patience": 2}}}
    with pytest.raises(ValueError, match=r"^settings: patience of apt needs validation images"):
        plan("few-shot", "apt", **same, **patient)


def test_notes_say_where_splits_and_radii_differ(two, tmp_path, monkeypatch):
    table = run(tmp_path / "out", "few-shot", "zero-shot,apt", **two)
    assert not table.notes
    own = {"settings": {"apt": {**LITTLE, "eps": "2/255"}}}
    monkeypatch.setattr(plan_module, "OWN_SPLITS", "others")
    # CoOp has a radius, too, but attacks no images
    told = run(tmp_path / "other", "few-shot", "zero-shot,coop,apt", **two, eps=None, **own).notes
    assert told == [
        "Caltech101: CoOp's splits",
        "OxfordPets: CoOp's splits",
        "apt is tuned at 2/255 and judged at 4/255",
    ]


@pytest.mark.parametrize(("protocol", "changes", "message"), BAD)
def test_bad_arguments_are_refused(protocol, changes, message):
    options = {"methods": "apt", **CALTECH, **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan(protocol, **options)


def test_domain_shift_names_the_class_that_differs(two):
    with pytest.raises(
        ValueError,
        match=r"^data: coop:OxfordPets has other.*class 0 is 'abyssinian' instead of 'face'",
    ):
        plan("domain-shift", **two)


# ---- tables --------------------------------------------------------------------------------------


def test_the_tables_have_mean_and_spread(tmp_path):
    table = run(tmp_path / "out", "base-to-new", "zero-shot,apt", **CALTECH)
    row = next(r for r in table.rows if r.method == "apt" and r.attack == "clean")
    values = [100 * v for v in row.values["new"].values()]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    md, tex = ((tmp_path / "out" / f"table.{s}").read_text("utf-8") for s in ("md", "tex"))
    assert (md, tex) == (markdown(table), latex(table))
    assert md.startswith("| accuracy | method | scoring | base | new | H |\n")
    assert f"{mean:.1f} ± {std:.1f} |" in md
    assert rf"{mean:.1f}\,{{\scriptsize$\pm$ {std:.1f}}}" in tex
    assert r"\toprule" in tex
    text = (tmp_path / "out" / "table.csv").read_text("utf-8")
    assert text == csv_text(table)
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == len(table.rows) * 3
    own = next(
        x for x in lines if (x["method"], x["attack"], x["column"]) == ("apt", "clean", "new")
    )
    assert (own["seeds"], own["scoring"], own["eps"]) == ("1 2", "strict", "0.0")
    assert float(own["mean"]) == pytest.approx(mean / 100)
    assert "strict scoring" in table.caption
    assert "mean over the seeds 1, 2" in table.caption


def test_the_page_stands_alone_and_has_curves(two, tmp_path):
    run(tmp_path / "out", "few-shot", "zero-shot,coop", **{**two, "shots": (1, 2, "all")})
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count("<svg") > 2
    assert 'class="w' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize("given", [None, "a {}."])
def test_the_guide_has_the_template_of_the_data_set(tmp_path, given):
    write_split(tmp_path / "data", "DTD")
    options = {"root": tmp_path / "data", "data": "coop:DTD", "shots": (1,), "seeds": (1,)}
    options["settings"] = {"all": LITTLE, "capt": {"guide_template": given}}
    run(tmp_path / "out", "few-shot", "capt", **options)
    folder = tmp_path / "out/cells/capt-DTD-1-shots-seed-1"
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["guide_template"] == (given or "{} texture.")
    assert AutoTuner.load(folder).config.guide_template == config["guide_template"]


def test_published_rows_say_how_they_are_judged(two, tmp_path):
    options = {**two, "attacks": None, "eps": None, "seeds": (1,), "scoring": "published"}
    options["settings"] = {"all": LITTLE}
    made = plan("few-shot", "zero-shot,apt,advpt", **options)
    assert made.judging("apt") == (["clean", "pgd-100"], ["4/255"])
    assert made.judging("advpt") == (["clean", "feature-pgd-40"], ["16/255"])
    fap = plan("few-shot", "zero-shot,apt", **{**options, "scoring": "published:fap"})
    assert fap.judging("zero-shot") == (["clean", "pgd-100:1/255"], ["1/255"])
    given = {**options, "attacks": "pgd-2", "eval_eps": ["2/255", 4 / 255], "limit": 4}
    table = run(tmp_path / "out", "few-shot", "zero-shot,apt", **given)
    assert table.scoring == "published"
    assert {row.accuracy for row in table.rows} == {"clean", "pgd-2 at 2/255", "pgd-2 at 4/255"}
    assert "| published |" in (tmp_path / "out" / "table.md").read_text("utf-8")
    row = Evaluation.load(
        tmp_path / "out/cells/zero-shot-Caltech101/evaluations/all/result.json"
    ).rows[1]
    assert (row["scoring"], row["settings"]["counts"]) == ("published", "last iterate")


def test_the_caption_says_how_each_attack_is_scored(two):
    made = plan("few-shot", "zero-shot", **{**two, "scoring": "published", "attacks": "pgd-2"})

    def caption(scoring, *attacks):
        rows = [{"attack": a, "eps": 0.0, "accuracy": 0.5, "model": "m"} for a in attacks]
        how = {"alone": True} if scoring == "published" else {}
        data = {"n": 3, "fingerprint": "same"}
        found = Evaluation([{**r, "reasons": []} for r in rows], data=data, how=how)
        return results.collect(made, [(c, c.judged[0], found) for c in made.cells]).caption

    last, robust = "accuracy on the last iterates of all images", "right clean and under each"
    assert caption("published", "clean", "pgd-2", "tpgd-3").endswith(last)
    mixed = caption("published", "clean", "pgd-2", "autoattack")
    assert f"{last}, but under autoattack an image counts as robust if it is {robust}" in mixed
    for others in (caption("published", "clean", "square"), caption("strict", "pgd-2")):
        assert last not in others
        assert robust in others


def test_a_table_never_mixes_scorings(two, tmp_path):
    options = {**two, "seeds": (1,)}
    made = plan("few-shot", "zero-shot,coop", **options)
    run(tmp_path / "out", "few-shot", "zero-shot,coop", **options)
    path = tmp_path / "out/cells/zero-shot-Caltech101/evaluations/all/result.json"
    found = json.loads(path.read_text())
    found["how"]["alone"] = True
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"^runs must be scored in one way"):
        protocols.execute(made, tmp_path / "out", resume=True, progress=False)
    folders = [str(path.parent), str(tmp_path / "out/cells/coop-Caltech101-1-shots-seed-1")]
    assert main(["report", *folders, "--out", str(tmp_path / "report.html")]) == 2


def test_untrusted_values_are_marked(two):
    made = plan("few-shot", "zero-shot", **two)
    row = {"attack": "clean", "eps": 0.0, "accuracy": 0.5, "model": "m", "reasons": ["it is odd"]}
    odd = Evaluation([row], data={"n": 3, "name": "x", "fingerprint": "x"})
    cell = made.cells[0]
    table = results.collect(made, [(c, c.judged[0], odd) for c in made.cells])
    assert cell.method == "zero-shot"
    assert "50.0 †" in markdown(table)
    assert any("it is odd" in note for note in table.notes)
    with pytest.raises(KeyError, match="no value of 'nap'"):
        table.mean("nap", "1")


# ---- the command ---------------------------------------------------------------------------------

COMMAND = ["--attacks=pgd-1", "--eps=8/255", "--limit=4", "--sanity=off", "--device=cpu"]
COMMAND += ["--methods=zero-shot,coop", "--shots", "1", "--seeds", "1"]


def test_the_command_plans_runs_and_resumes(two, tmp_path, capsys):
    config = tmp_path / "settings.yaml"
    config.write_text("all: {epochs: 1, n_ctx: 2}\n")
    where = [f"--data={two['data']}", f"--root={two['root']}", f"--config={config}"]
    command = ["protocol", "cross-dataset", *COMMAND, *where]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 cells: 1 tunings of 1 optimizer steps; 32 evaluated images" in said
    assert "1. zero-shot on Caltech101\n" in said
    assert not (tmp_path / "out").exists()
    assert main([*command, f"--out={tmp_path / 'out'}"]) == 0
    out, err = capsys.readouterr()
    assert "| clean | zero-shot | strict |" in out
    assert "[1/2] zero-shot on Caltech101: clean " in err
    assert "left" in err
    before = contents(tmp_path / "out")
    assert main([*command, f"--out={tmp_path / 'out'}"]) == 2
    assert "already holds this plan" in capsys.readouterr().err
    (tmp_path / "out/cells/zero-shot-Caltech101/evaluations/OxfordPets/result.json").unlink()
    assert main(["protocol", "cross-dataset", f"--resume={tmp_path / 'out'}"]) == 0
    assert "finished before" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cross"], "did you mean 'cross-dataset'"),
        (["few-shot", "--data=x"], "--out is needed"),
        (["few-shot", "--out=x"], "--data is needed"),
        (["few-shot", "--resume=x", "--limit=3"], "remove all other options"),
        (["few-shot", "--resume=missing"], "it has no protocol.json"),
        (
            ["few-shot", "--config=missing.yaml", "--data=x", "--out=y"],
            "missing.yaml does not exist",
        ),
    ],
)
def test_bad_commands_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["protocol", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_says_how_the_protocol_goes_on(two, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(finishing, "evaluate", interrupted)
    where = [f"--data={two['data']}", f"--root={two['root']}", f"--out={tmp_path / 'out'}"]
    assert main(["protocol", "few-shot", *COMMAND, *where]) == 130
    assert f"few-shot --resume {tmp_path / 'out'}\n" in capsys.readouterr().err


def test_a_model_object_is_used_as_it_is(two, tmp_path):
    clip = load_clip(small_model())
    options = {**two, "seeds": (1,), "clip": clip}
    table = run(tmp_path / "out", "few-shot", "zero-shot,apt", **options)
    assert table.mean("apt", "1", data="OxfordPets") >= 0
