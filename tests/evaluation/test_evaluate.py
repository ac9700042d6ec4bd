"""Evaluation: what counts as robust, and what is reported."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import processes
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler

from fastprompt import Evaluation, evaluate, load_data
from fastprompt._utils.files import read_tensors
from fastprompt.attacks import FeaturePGD
from fastprompt.data import ImageTensors
from fastprompt.data.dataset import evenly
from fastprompt.evaluation.examples import Examples
from fastprompt.evaluation.record import Record
from fastprompt.evaluation.scoring import wilson
from fastprompt.evaluation.units import describe
from fastprompt.prompts.mixture import MixtureHead, PromptRouter


class Brightness(nn.Module):
    """Class 1 if the mean pixel is above one half: the margin of each image is known."""

    def forward(self, x):
        margin = 50 * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-margin, margin], dim=1)


def grays(levels, labels):
    images = torch.stack([torch.full((3, 16, 16), v, dtype=torch.uint8) for v in levels])
    return ImageTensors(images, torch.tensor(labels))


# 0.5 lies between the levels 127 and 128
DATA = grays([100, 122, 126, 129, 133, 160, 140], [0, 0, 0, 1, 1, 1, 0])


def test_counts_are_what_the_margins_say():
    result = evaluate(Brightness(), DATA, ["clean", "pgd-5"], ["4/255", "8/255"], progress=False)
    assert result.accuracy("model", "clean") == 6 / 7  # the last label is wrong
    assert result.accuracy("model", "pgd-5", "4/255") == 4 / 7
    assert result.accuracy("model", "pgd-5", "8/255") == 2 / 7
    assert result.trusted
    with pytest.raises(KeyError, match="'pgd-9'"):
        result.accuracy("model", "pgd-9", "4/255")


def test_an_image_that_is_wrong_when_clean_never_counts_as_robust():
    class Contrary(nn.Module):  # the attack can only turn its answer to the right one
        def forward(self, x):
            return Brightness()(x).flip(1)

    result = evaluate(Contrary(), DATA, ["clean", "pgd-3"], "8/255", progress=False)
    assert result.accuracy("model", "pgd-3", "8/255") <= result.accuracy("model", "clean")


def test_zero_eps_equals_clean():
    result = evaluate(Brightness(), DATA, ["clean", "pgd-2"], 0, progress=False)
    assert result.accuracy("model", "pgd-2", 0) == result.accuracy("model", "clean")


def detached(x):
    return Brightness()(x).detach()


def nan_gradient(x):
    return Brightness()(x) + 0 * (x * 0).sqrt().sum(dim=(1, 2, 3))[:, None]


def nan_logits(x):
    return Brightness()(x) * float("nan")


@pytest.mark.parametrize("model", [detached, nan_gradient, nan_logits])
def test_a_model_without_gradients_is_not_scored_as_robust(model):
    row = evaluate(model, DATA, ["pgd-3"], "1/255", progress=False).row("model", "pgd-3", "1/255")
    assert row["accuracy"] == 0.0
    assert row["trusted"] is False
    if model is nan_logits:
        assert "logits are NaN for 7 of 7 images" in row["reasons"]
    else:
        assert "no usable gradient for 6 images" in row["reasons"][0]
        assert row["stalled"] == row["flags"].count("?") == 6


def test_one_in_a_hundred_is_of_all_images_not_of_the_first_window(monkeypatch):
    from fastprompt.evaluation import model_run

    monkeypatch.setattr(model_run, "WINDOW", 1)

    class Pinned(Brightness):  # no gradient for the images of one level
        def forward(self, x):
            free = (x.mean(dim=(1, 2, 3)) > 0.4)[:, None]
            logits = super().forward(x)
            return torch.where(free, logits, logits.detach())

    options = {"batch": 10, "sanity": "off", "progress": False}
    for stuck, trusted in ((1, True), (2, False)):
        data = grays([60] * stuck + [200] * (150 - stuck), [0] * stuck + [1] * (150 - stuck))
        row = evaluate(Pinned(), data, ["pgd-2"], "1/255", **options).rows[1]
        assert row["stalled"] == stuck
        assert row["trusted"] is trusted


def test_rows_hold_what_was_done(tmp_path):
    result = evaluate({"m": Brightness()}, DATA, ["clean", "pgd-3"], "4/255", progress=False)
    result.save(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())
    clean, robust = saved["rows"]
    assert (clean["path"], clean["eps"], clean["n"]) == ("none", 0.0, 7)
    assert robust["path"] == "adaptive"
    assert robust["eps"] == 4 / 255
    assert robust["settings"]["steps"] == 3
    assert robust["settings"]["counts"] == "any iterate"
    assert robust["gradients"] > 0
    assert robust["forwards"] >= robust["gradients"]
    assert saved["data"]["labels"] == DATA.labels.tolist()
    assert saved["data"]["fingerprint"] == DATA.fingerprint
    assert saved["models"]["m"]["kind"] == "Brightness"
    assert saved["how"]["seed"] == 0
    assert {s["verdict"] for s in saved["sanity"]} <= {"passed", "skipped"}
    again = Evaluation.load(tmp_path / "result.json")
    assert again.as_dict() == saved
    assert robust["interval"][0] < robust["accuracy"] < robust["interval"][1]
    assert saved["trusted"] is True
    assert "torch" in saved["versions"]


def test_batch_size_changes_nothing():
    results = [
        evaluate(Brightness(), DATA, ["pgd-3"], "4/255", batch=b, progress=False).rows[1]
        for b in (1, 3, 7)
    ]
    assert len({r["flags"] for r in results}) == 1
    assert results[0]["n"] == 7


def test_paths_say_what_an_attack_saw(small_clip):
    data = load_data("patterns", shots=1)
    models = {
        k: small_clip.zero_shot(data.classnames, [t]) for k, t in (("a", "{}"), ("b", "x {}"))
    }
    attacks = ["pgd-1", "feature-pgd-2", "pgd-2@a", "square-2"]
    options = {"limit": 4, "sanity": "off", "progress": False}
    result = evaluate(models, data.test, attacks, "4/255", surrogates={"a": models["a"]}, **options)
    paths = {row["attack"]: row["path"] for row in result.rows}
    assert paths == {
        "clean": "none",
        "pgd-1": "adaptive",
        "feature-pgd-2": "transfer:image-encoder",
        "pgd-2@a": "transfer:a",
        "square-2": "black-box",
    }
    # what is made on a model itself is what an attack without early stopping makes of it
    own = evaluate(models["a"], data.test, ["pgd-2"], "4/255", stop=False, **options)
    assert result.row("a", "pgd-2@a", "4/255")["flags"] == own.rows[1]["flags"]


def test_only_images_that_are_right_are_attacked_and_they_leave_when_they_fall():
    seen = []

    class Spied(Brightness):
        def forward(self, x):
            if x.requires_grad:
                seen.append(len(x))
            return super().forward(x)

    result = evaluate(Spied(), DATA, ["pgd-9"], "4/255", sanity="off", progress=False)
    row = result.row("model", "pgd-9", "4/255")
    assert seen[0] == 6  # the last label is wrong
    assert sum(seen) == row["gradients"] < 6 * 9
    assert seen[-1] == row["correct"] == 4
    assert sum(row["fell_at"].values()) == 2
    whole = evaluate(
        Spied(), DATA, ["pgd-9"], "4/255", stop=False, sanity="off", progress=False
    ).row("model", "pgd-9", "4/255")
    assert whole["gradients"] == 6 * 9
    assert whole["settings"]["counts"] == "last iterate"


def test_early_stopping_finds_what_the_last_iterate_hides():
    class Ring(nn.Module):  # wrong in a narrow band of brightness alone: further on right again
        def forward(self, x):
            mean = x.mean(dim=(1, 2, 3))
            away = 30 * ((mean - 0.55).abs() - 0.025)
            return torch.stack([away, -away], dim=1)

    class Pulled(Ring):  # its gradient always points to brighter images
        def forward(self, x):
            pull = -x.mean(dim=(1, 2, 3))
            logits = super().forward(x).detach()
            return logits + torch.stack([pull - pull.detach(), 0 * pull], dim=1)

    data = grays([131, 133], [0, 0])  # the band goes from level 134 to 146
    plain, ours = (
        evaluate(Pulled(), data, ["pgd-8"], 40 / 255, stop=k, sanity="off", progress=False).rows[1]
        for k in (False, True)
    )
    assert plain["correct"] == 2
    assert ours["correct"] == 0
    assert ours["trusted"]


def test_autoattack_is_four_attacks_on_what_is_left(monkeypatch):
    from fastprompt.evaluation import plan

    monkeypatch.setitem(plan._STEPS, "fab-t", 3)
    monkeypatch.setitem(plan._STEPS, "square", 20)
    options = {"sanity": "off", "progress": False}
    monkeypatch.setitem(sys.modules, "torchattacks", None)  # an import would fail
    result = evaluate(Brightness(), DATA, ["autoattack", "apgd-ce"], "4/255", **options)
    row = result.row("model", "autoattack", "4/255")
    parts = row["parts"]
    assert [part["attack"] for part in parts] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    standing = [part["standing"] for part in parts]
    assert standing == sorted(standing, reverse=True)
    assert standing[-1] == row["correct"]
    assert standing[0] == result.row("model", "apgd-ce", "4/255")["correct"]
    steps = [part["steps"] for part in row["settings"]["parts"] if "steps" in part]
    assert steps == [100, 100, 3]
    assert all(part["gradients"] == 0 for part in parts if part["attack"] == "square")


def test_gradients_of_fab_that_are_zero_are_counted():
    options = {"sanity": "off", "progress": False}
    _, fab, square = evaluate(detached, DATA, ["fab-t-2", "square-3"], "1/255", **options).rows
    assert fab["stalled"] == fab["n"] - fab["flags"].count("0") > 0
    assert not fab["trusted"]
    assert square["trusted"]


def test_the_standard_version_is_the_standard():
    from fastprompt.evaluation.plan import plan
    from fastprompt.evaluation.stages import How

    standard = plan("autoattack", 8 / 255, How())
    wanted = {
        "apgd-ce": {"steps": 100, "loss": "ce", "restarts": 1},
        "apgd-t": {"steps": 100, "loss": "targeted-dlr", "targets": 9, "restarts": 1},
        "fab-t": {"steps": 100, "targets": 9, "restarts": 1},
        "square": {"queries": 5000, "loss": "margin", "restarts": 1},
    }
    assert {stage.name for stage in standard.stages} == set(wanted)
    for stage in standard.stages:
        assert wanted[stage.name].items() <= stage.settings.items()


# ---- a loader, and a stop in the middle ---------------------------------------------------------


def test_a_loader_is_read_window_by_window():
    class Counting(torch.utils.data.Dataset):
        held = 0

        def __len__(self):
            return len(DATA)

        def __getitem__(self, i):
            return DATA[i]

    loader = torch.utils.data.DataLoader(Counting(), batch_size=3)
    one, other = (
        evaluate(Brightness(), data, ["pgd-3"], "4/255", batch=1, progress=False)
        for data in (loader, DATA)
    )
    assert [r["flags"] for r in one.rows] == [r["flags"] for r in other.rows]
    empty = torch.utils.data.DataLoader(ImageTensors(DATA.images[:0], DATA.labels[:0]))
    with pytest.raises(ValueError, match="data is empty"):
        evaluate(Brightness(), empty)


class Items:
    """Any map-style data set: it says nothing of itself."""

    def __init__(self, pairs, change=lambda image: image):
        self.pairs, self.change, self.read = pairs, change, []

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        self.read.append(i)
        image, label = self.pairs[i]
        return self.change(image), label


PAIRS = [DATA[i] for i in range(len(DATA))]


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": SubsetRandomSampler([0, 1])},
        {"sampler": RandomSampler(DATA, replacement=True)},
        {"sampler": RandomSampler(DATA, num_samples=3)},
        {"batch_sampler": BatchSampler(SubsetRandomSampler([0, 1]), 2, False)},
        {"batch_sampler": [[0, 1], [3]]},
        {"collate_fn": lambda items: items},
    ],
)
def test_a_loader_that_chooses_or_changes_its_images_is_refused(options):
    with pytest.raises(ValueError, match=r"^data .*loader.*(Sampler|list|collate_fn)"):
        evaluate(Brightness(), DataLoader(DATA, **options), progress=False)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"batch_size": None}, {"drop_last": True}])
def test_other_loaders_are_read_whole(options):
    result = evaluate(Brightness(), DataLoader(DATA, **options), "clean", progress=False)
    assert result.rows[0]["correct"] == 6
    assert result.data["n"] == 7


def test_images_that_change_are_refused():
    def noisy(image):
        return image + torch.randint(2, image.shape, dtype=torch.uint8)

    with pytest.raises(ValueError, match=r"^data .*item 0"):
        evaluate(Brightness(), Items(PAIRS, noisy), progress=False)


def test_labels_and_pixels_that_only_show_when_they_are_read():
    for label, match in ((-1, r"0\b.* -1"), (2, r"0\b.*\b1\b.* 2")):
        pairs = [*PAIRS[:4], (PAIRS[4][0], label)]
        with pytest.raises(ValueError, match=f"^labels .*{match}"):
            evaluate(Brightness(), Items(pairs), progress=False)
    later = [*PAIRS[:4], (PAIRS[4][0].float() / 255, 1)]
    with pytest.raises(TypeError, match=r"^data .*uint8.* torch\.float32"):
        evaluate(Brightness(), Items(later), batch=4, progress=False)


def test_one_logit_for_each_class():
    named = ImageTensors(DATA.images, DATA.labels, classnames=["dark", "bright", "blue"])
    with pytest.raises(ValueError, match=r"^model .* 2 logits.* 3 classes"):
        evaluate(Brightness(), named, progress=False)


def test_a_few_of_many_images_do_not_wait_for_all():
    data = Items(PAIRS * 30)
    evaluate(Brightness(), data, "clean", limit=5, progress=False)
    assert len(set(data.read)) <= 1 + 5  # and the first, for its shape


def test_a_window_is_read_in_batches(monkeypatch):
    from fastprompt.data import dataset

    sizes, real = [], dataset.DataLoader

    def watched(data, batch_size, **options):
        sizes.append(batch_size)
        return real(data, batch_size=batch_size, **options)

    # workers read a batch each: one of a whole window would wait for one of them
    monkeypatch.setattr(dataset, "DataLoader", watched)
    evaluate(Brightness(), Items(PAIRS), ["pgd-2"], batch=2, sanity="off", progress=False)
    assert sizes == [2, 2]  # clean, the attack


class Stopped(Exception):
    pass


def many(n=40):
    gen = torch.Generator().manual_seed(0)
    levels = torch.randint(90, 170, (n,), generator=gen).tolist()
    return grays(levels, [int(v > 127) for v in levels])


@pytest.mark.parametrize("after", [1, 2, 5, 9, 13])
def test_a_stopped_evaluation_goes_on_to_the_same_bits(tmp_path, after, monkeypatch):
    from fastprompt.evaluation import model_run

    monkeypatch.setattr(model_run, "WINDOW", 2)
    data, attacks, radii = many(), ["pgd-3", "apgd-ce-4", "cw-3"], ["1/255", "4/255"]
    options = {"batch": 5, "progress": False, "sanity": "off"}
    whole = evaluate(Brightness(), data, attacks, radii, out=tmp_path / "whole", **options)
    real, count = Record.add, [0]

    def stop(self, *arguments):
        real(self, *arguments)
        count[0] += 1
        if count[0] == after:
            raise Stopped

    monkeypatch.setattr(Record, "add", stop)
    with pytest.raises(Stopped):
        evaluate(Brightness(), data, attacks, radii, out=tmp_path / "part", **options)
    monkeypatch.setattr(Record, "add", real)
    path = tmp_path / "part" / "progress.jsonl"
    path.write_bytes(path.read_bytes() + b'{"unit": ["cut sho')  # as a crash leaves it
    again = evaluate(
        Brightness(), data, attacks, radii, out=tmp_path / "part", resume=True, **options
    )

    def same(result):
        timeless = json.loads(json.dumps(result.as_dict()))
        for row in timeless["rows"]:
            row.pop("seconds")
        return timeless

    assert same(again) == same(whole)
    whole_images, part_images = (
        (tmp_path / k / "examples.safetensors").read_bytes() for k in ("whole", "part")
    )
    assert whole_images == part_images
    assert not (tmp_path / "part" / "examples").exists()


@pytest.mark.parametrize(("n", "total"), [(8, 7), (256, 60), (4, 4), (1, 9), (0, 3), (8, 1000)])
def test_so_many_places_as_there_are_are_drawn_from_end_to_end(n, total):
    places = evenly(n, total)
    assert len(places) == min(n, total)
    if len(places) > 1:
        assert (places[0], places[-1]) == (0, total - 1)


def test_what_is_kept_to_look_at_was_right_clean(tmp_path):
    data = many()  # three in four get a wrong label
    labels = torch.tensor([y if i % 4 == 0 else 1 - y for i, (_, y) in enumerate(data)])
    data = ImageTensors(torch.stack([x for x, _ in data]), labels)
    both = {"one": Brightness(), "other": Brightness()}
    options = {"progress": False, "sanity": "off", "out": tmp_path}
    result = evaluate(both, data, ["pgd-3"], "4/255", **options)
    kept = read_tensors(tmp_path / "examples.safetensors", "examples")[0]
    assert len(kept["indices"]) == 8
    right = {i for i, flag in enumerate(result.rows[0]["flags"]) if flag == "1"}
    assert len(right) >= 8
    assert set(kept["indices"].tolist()) <= right


def test_kept_images_are_those_that_most_models_have_right():
    kept = Examples(None)
    kept.choose([[i % 2 == 0 for i in range(12)], [i % 3 == 0 for i in range(12)]])
    assert kept.places == [0, 2, 3, 4, 6, 8, 9, 10]
    kept.choose([[False, False, True]])
    assert kept.places == [0, 1, 2]


def test_parts_with_images_that_an_older_version_chose_are_no_examples():
    kept = Examples(None)
    kept.choose([[i > 3 for i in range(12)]])
    kept.keep(("a",), range(12), torch.rand(12, 3, 2, 2))
    assert kept.of([("a",)], torch.zeros(8, 3, 2, 2)) is not None
    kept.places = list(range(8))
    assert kept.of([("a",)], torch.zeros(8, 3, 2, 2)) is None


def test_a_stop_while_the_parts_of_the_examples_are_dropped(tmp_path, monkeypatch):
    from fastprompt.evaluation import model_run

    monkeypatch.setattr(model_run, "WINDOW", 2)
    options = {"batch": 5, "progress": False, "sanity": "off", "out": tmp_path, "eps": "4/255"}
    real, count = Path.unlink, [0]

    def stop(self, *arguments, **more):
        real(self, *arguments, **more)
        count[0] += 1
        if count[0] == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(Stopped):
            evaluate(Brightness(), many(), ["pgd-3"], **options)
    whole = (tmp_path / "examples.safetensors").read_bytes()
    evaluate(Brightness(), many(), ["pgd-3"], resume=True, **options)
    assert (tmp_path / "examples.safetensors").read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {
        *("progress.jsonl", "result.json", "examples.safetensors", ".lock"),
    }


@pytest.mark.parametrize("line", [b"[]", b"5", b'{"unit": ["a"], "outcome": {}}', b"{}"])
def test_a_damaged_record_is_told(tmp_path, line):
    (tmp_path / "progress.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"^resume.*progress\.jsonl .*damaged"):
        evaluate(Brightness(), DATA, out=tmp_path, resume=True, progress=False)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of an evaluation without its result."""
    folder = tmp_path_factory.mktemp("stopped")
    evaluate(Brightness(), DATA, ["pgd-2"], out=folder, sanity="off", progress=False)
    (folder / "result.json").unlink()
    return folder


def resume(folder):
    return evaluate(
        Brightness(), DATA, ["pgd-2"], out=folder, resume=True, sanity="off", progress=False
    )


def changed(line, **entries):
    row = json.loads(line)
    row["outcome"] |= entries
    return json.dumps(row).encode()


ALTERED = {
    "flags": lambda head, one, two: [head, one, changed(two, flags="0" * 6)],
    "predictions": lambda head, one, two: [head, changed(one, predictions=[0] * 6), two],
    "cut": lambda head, one, two: [head, one[:-9], two],
    "cut last": lambda head, one, two: [head, one, two[:-9]],
    "reordered": lambda head, one, two: [head, two, one],
    "twice": lambda head, one, two: [head, one, one, two],
    "missing": lambda head, one, two: [head, two],
    "empty": lambda head, one, two: [head, one, b"", two],
    "plan": lambda head, one, two: [head.replace(b"pgd-2", b"pgd-9"), one, two],
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_an_altered_record_is_refused(stopped, tmp_path, alter):
    folder = shutil.copytree(stopped, tmp_path / "part")
    path = folder / "progress.jsonl"
    path.write_bytes(b"\n".join(alter(*path.read_bytes().splitlines())) + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^resume: .*progress\.jsonl .*line"):
        resume(folder)
    assert path.read_bytes() == before


def test_lines_of_another_evaluation_are_refused(stopped, tmp_path):
    other = tmp_path / "other"
    evaluate(Brightness(), DATA, ["pgd-3"], out=other, sanity="off", progress=False)
    head = (stopped / "progress.jsonl").read_bytes().splitlines()[0]
    lines = (other / "progress.jsonl").read_bytes().splitlines()
    (other / "progress.jsonl").write_bytes(b"\n".join([head, *lines[1:]]) + b"\n")
    with pytest.raises(ValueError, match=r"^resume: .* line 2"):
        resume(other)


MISFITS = {
    "places": [0, 1, 2, 3, 4, 99],
    "flags": "11",
    "gradients": None,
    "entries": -1,
    "fell_at": [0],
    "seconds": float("nan"),
}


@pytest.mark.parametrize(("name", "value"), MISFITS.items())
def test_an_outcome_of_other_images_is_refused(stopped, tmp_path, monkeypatch, name, value):
    """With the right digest, as another version might have written it."""
    folder = shutil.copytree(stopped, tmp_path / "part")
    lines = (folder / "progress.jsonl").read_bytes().splitlines()
    (folder / "progress.jsonl").write_bytes(
        b"\n".join([*lines[:2], changed(lines[2], **{name: value})]) + b"\n"
    )
    digest = json.loads(lines[2])["digest"]
    real = Record._digest
    monkeypatch.setattr(
        Record,
        "_digest",
        lambda self, number, *row: digest if number == 3 else real(self, number, *row),
    )
    with pytest.raises(ValueError, match=rf"^resume: .*model/pgd-2/.* {name}\b"):
        resume(folder)


def test_a_folder_in_use_is_not_written_to(tmp_path):
    with processes.locking(tmp_path), pytest.raises(BlockingIOError, match=r"^out: .*another"):
        evaluate(Brightness(), DATA, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"^out .*folder"):
        evaluate(Brightness(), DATA, out="", progress=False)


def test_a_result_is_not_written_over(tmp_path):
    Evaluation(rows=[]).save(tmp_path / "result.json")
    with pytest.raises(FileExistsError, match=r"^out.*resume"):
        evaluate(Brightness(), DATA, out=tmp_path, progress=False)


def test_an_evaluation_is_not_mixed_with_another(tmp_path):
    options = {"progress": False, "sanity": "off", "out": tmp_path}
    evaluate(Brightness(), DATA, ["pgd-2"], "4/255", **options)
    with pytest.raises(FileExistsError, match=r"^out.*resume"):
        evaluate(Brightness(), DATA, ["pgd-2"], "4/255", **options)
    for other in ({"seed": 1}, {"eps": "3/255"}, {"batch": 3}, {"attacks": ["pgd-3"]}):
        arguments = {"attacks": ["pgd-2"], "eps": "4/255", **options, **other}
        with pytest.raises(ValueError, match=r"^resume.*attacks"):
            evaluate(Brightness(), DATA, resume=True, **arguments)
    with pytest.raises(ValueError, match="resume needs out"):
        evaluate(Brightness(), DATA, resume=True)
    (tmp_path / "progress.jsonl").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"^resume.*damaged"):
        evaluate(Brightness(), DATA, ["pgd-2"], "4/255", resume=True, **options)


def test_models_differ_by_what_they_say_of_themselves():
    """A temperature of a mixture is in no state dict: a stopped evaluation is not gone on with."""
    router = PromptRouter(4, 3)
    heads = [
        MixtureHead(router, temperature=t, mix=m)
        for t, m in ((1, "raw"), (2, "raw"), (1, "normalized"))
    ]
    hashes = [describe(head)["weights"] for head in heads]
    assert len(set(hashes)) == 3
    assert describe(MixtureHead(router, mix="raw"))["weights"] == hashes[0]


def test_limit_draws_the_same_images_for_a_seed():
    rows = [
        evaluate(Brightness(), DATA, ["clean"], limit=3, seed=s, progress=False).data["indices"]
        for s in (0, 0, 1, 2)
    ]
    assert rows[0] == rows[1]
    assert len({tuple(r) for r in rows}) > 1
    assert [len(r) for r in rows] == [3] * 4


def test_names_may_have_spaces_around_them():
    rows = evaluate(Brightness(), DATA, "pgd-2, cw-2", progress=False).rows
    assert [row["attack"] for row in rows] == ["clean", "pgd-2", "cw-2"]


def test_what_is_made_on_the_model_itself_sees_all_of_it():
    model, data = Brightness(), grays([100, 118, 120, 122], [0] * 4)
    for surrogates, verdict in (({"s": model}, "skipped"), ({"s": Brightness()}, "failed")):
        # one step is too few for PGD to leave the place where its random start put it
        result = evaluate(
            model, data, ["pgd-1", "pgd-9@s"], "8/255", surrogates=surrogates, progress=False
        )
        assert result.row("model", "pgd-9@s", "8/255")["path"] == "transfer:s"
        found = {s["check"]: s["verdict"] for s in result.sanity}
        assert found["rows: white-box"] == verdict


def test_the_image_encoders_passes_are_counted(small_clip):
    data = load_data("patterns", shots=1)
    model = small_clip.zero_shot(data.classnames, data.templates)
    options = {"limit": 12, "sanity": "off", "progress": False}
    clean, row = evaluate(model, data.test, ["feature-pgd-3"], "4/255", **options).rows
    assert row["gradients"] == 3 * clean["correct"] > 0
    assert row["forwards"] == 4 * clean["correct"]

    class Called:  # no module, but it has an encoder
        clip = small_clip

        def __call__(self, x):
            return model(x)

    other = evaluate(Called(), data.test, ["feature-pgd-3"], "4/255", **options).rows[1]
    assert other["flags"] == row["flags"]


def test_a_state_that_is_no_tensor(tmp_path):
    class Stateful(Brightness):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    assert evaluate(Stateful(), DATA, "clean", progress=False).rows[0]["correct"] == 6


def test_table_names_paths_and_marks_what_is_not_trusted():
    text = evaluate(
        {"good": Brightness(), "bad": detached}, DATA, ["clean", "pgd-2"], "2/255", progress=False
    ).table()
    assert "adaptive" in text
    assert "2/255" in text
    assert "! not to be trusted: bad, pgd-2: no usable gradient" in text


def test_wilson_interval():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_bad_input(small_clip):
    cases = [
        ({"attacks": ["pdg-20"]}, "attack.* 'pdg-20'.*'pgd-20'"),
        ({"attacks": []}, "^attacks .*empty"),
        ({"eps": 4}, "^eps .* 4/255"),
        ({"eps": -0.1}, r"^eps .*0.* -0\.1"),
        ({"limit": 0}, "^limit .*1.* 0"),
        ({"batch": 0}, "^batch .*1.* 0"),
        ({"attacks": ["feature-pgd-2"]}, r"^attack 'feature-pgd-2' .*\.clip"),
        ({"attacks": ["apgd-cE"]}, "attack.* 'apgd-cE'.*'apgd-ce'"),
        ({"attacks": ["pgd"]}, "attack.* 'pgd'"),
        ({"attacks": ["pgd-2@other"]}, "surrogate.* 'other'"),
        ({"attacks": ["pgd-2@"]}, "surrogate.* ''"),
        ({"sanity": "most"}, "^sanity .*'most'"),
        ({"samples": 0}, "^samples .*1.* 0"),
        ({"seed": -1}, "^seed .*0.* -1"),
    ]
    for options, match in cases:
        with pytest.raises(ValueError, match=match):
            evaluate(Brightness(), DATA, progress=False, **options)
    with pytest.raises(ValueError, match=r"^models .*empty"):
        evaluate({}, DATA)
    with pytest.raises(TypeError, match=r"^limit .*'5'"):
        evaluate(Brightness(), DATA, limit="5")
    with pytest.raises(ValueError, match="data is empty"):
        evaluate(Brightness(), ImageTensors(DATA.images[:0], DATA.labels[:0]))
    with pytest.raises(ValueError, match=r"^labels .*\b0\b.*\b1\b.* 2"):
        evaluate(Brightness(), grays([3], [2]), progress=False)
    with pytest.raises(ValueError, match=r"^eps .* 0 .*'feature-pgd-2'"):
        evaluate(small_clip.zero_shot(["a", "b"]), DATA, ["feature-pgd-2"], 0, progress=False)


def test_what_is_no_classifier_is_refused():
    def probabilities(x):
        return Brightness()(x).softmax(dim=1)

    def elsewhere(x):
        return Brightness()(x).to("meta")

    for model, match in (
        (probabilities, "probabilities.* logits"),
        (elsewhere, "logits .*meta.* cpu"),
        (lambda x: x, r"\[7, C\].* \[7, 3"),
        (lambda x: None, r"\[7, C\].* NoneType"),
        (lambda x: Brightness()(x)[:, :1], r" 2\b.* \[7, 1\]"),
        (nn.Linear(1, 1, device="meta"), "'model' .*meta"),
        ({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1, device="meta")}, "'b' .*meta"),
    ):
        with pytest.raises(ValueError, match=f"^model .*{match}"):
            evaluate(model, DATA, progress=False)


def test_the_feature_attack_runs_once_for_models_with_one_encoder(
    small_clip, monkeypatch, tmp_path
):
    data = load_data("patterns", shots=1)
    templates = {"a": data.templates, "b": ["{}"], "c": ["the {} thing"]}
    models = {k: small_clip.zero_shot(data.classnames, v) for k, v in templates.items()}
    options = {"limit": 24, "batch": 2, "sanity": "off", "progress": False}
    attacked = []
    run = FeaturePGD.run

    def counted(self, images, **indices):
        attacked.append(len(images))
        return run(self, images, **indices)

    monkeypatch.setattr(FeaturePGD, "run", counted)
    folder = tmp_path / "together"
    whole = evaluate(models, data.test, ["feature-pgd-3"], "16/255", out=folder, **options)
    crafted = sum(attacked)
    right = [{i for i, flag in enumerate(row["flags"]) if flag == "1"} for row in whole.rows[:3]]
    assert crafted == len(set.union(*right)) > max(map(len, right))
    for (name, model), row in zip(models.items(), whole.rows[3:], strict=True):
        assert row["model"] == name
        assert row["gradients"] >= 3 * len(right[list(models).index(name)])
        alone = evaluate(model, data.test, ["feature-pgd-3"], "16/255", **options).rows[1]
        assert row["flags"] == alone["flags"]
    # interrupted while the last model was judged
    progress = folder / "progress.jsonl"
    progress.write_bytes(progress.read_bytes()[:-5])
    (folder / "result.json").unlink()
    options |= {"out": folder, "resume": True}
    resumed = evaluate(models, data.test, ["feature-pgd-3"], "16/255", **options)
    without = [[{**row, "seconds": 0} for row in result.rows] for result in (whole, resumed)]
    assert without[0] == without[1]
