"""What workers must have in common: each difference changes a fact, and the refusal names it."""

import contextlib
import copy
import os
import shutil
from functools import cache

import pytest
import torch
from helpers import picture_sources
from helpers.coop_trees import write_split
from helpers.fake_ray import installed
from helpers.models import small_model
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_pil_image

from fastprompt import AdvPTTuner, evaluate, load_clip, load_data, predict, protocols
from fastprompt.data import tar_shards
from fastprompt.data.dataset import ImageTensors
from fastprompt.protocols import finishing, make_plan
from fastprompt.runners import Ray

NAMES = ["cat", "dog", "bird"]
LITTLE = {"epochs": 1, "steps": 1, "n_ctx": 2, "warmup_epochs": 0, "precision": "fp32"}


class Caught(Exception):
    """The work that was to be sent to workers."""


class Catching:
    """A runner that runs nothing."""

    @contextlib.contextmanager
    def team(self, work, device):
        raise Caught(work)
        yield


def work_of(call, *arguments, **options):
    with pytest.raises(Caught) as caught:
        call(*arguments, runner=Catching(), progress=False, **options)
    return caught.value.args[0]


def refused(monkeypatch, own, theirs, name, facts=None):
    """Only the fact ``name`` differs, and a worker that has it otherwise is refused."""
    mine, other = facts or own.facts(), theirs.facts()
    assert mine.keys() == other.keys()
    assert [k for k in mine if mine[k] != other[k]] == [name]
    monkeypatch.setattr(own, "facts", lambda: mine)
    ray = installed(monkeypatch, theirs=theirs)
    words = f"^ray: {name} must be the same on all machines, got '{mine[name]}' here and '"
    with Ray().team(own, torch.device("cpu")) as team, pytest.raises(ValueError, match=words):
        next(team.each([0]))
    assert "do" not in ray.calls
    assert not ray.alive


def pictures(count=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=draw)


def changed(place=0, label=None):
    """The images, with one of them changed, or its label."""
    pixels, labels = pictures(), torch.tensor([0, 1, 2, 0])
    if label is None:
        pixels[place, 0, 0, 0] ^= 1
    else:
        labels[place] = label
    return ImageTensors(pixels, labels)


def images(count=4):
    return ImageTensors(pictures()[:count], torch.tensor([0, 1, 2, 0])[:count])


@cache
def clip(seed=0):
    return load_clip(small_model(seed=seed))


@cache
def model(seed=0, template="a photo of a {}."):
    return clip(seed).zero_shot(NAMES, [template])


# ---- an evaluation -------------------------------------------------------------------------------


def evaluation(
    data=None, attacks="pgd-2,pgd-2@other", eps="2/255", classifier=None, other=1, **own
):
    options = {"batch": 2, "sanity": "off", "search_precision": "own", **own}
    return work_of(
        *(evaluate, classifier or model(), data or images(), attacks, eps),
        surrogates={"other": model(seed=other)},
        **options,
    )


@cache
def plain():
    return evaluation()


EVALUATION = {
    "weights": ("models", lambda: {"classifier": model(seed=2)}),
    "prompt": ("models", lambda: {"classifier": model(template="a drawing of a {}.")}),
    "precision": ("models", lambda: {"classifier": model().in_precision("fp64")}),
    "surrogate": ("models", lambda: {"other": 2}),
    "attack": ("settings", lambda: {"attacks": "pgd-3,pgd-2@other"}),
    "eps": ("settings", lambda: {"eps": "3/255"}),
    "seed": ("settings", lambda: {"seed": 1}),
    "batch": ("settings", lambda: {"batch": 3}),
    "stop": ("settings", lambda: {"stop": False}),
    "scoring": ("settings", lambda: {"scoring": "published"}),
    "twin": ("settings", lambda: {"search_precision": "bf16"}),
    "pixel": ("images", lambda: {"data": changed()}),
    "last pixel": ("images", lambda: {"data": changed(3)}),
    "label": ("images", lambda: {"data": changed(label=2)}),
    "number": ("images", lambda: {"data": images(3)}),
}


@pytest.mark.parametrize("case", EVALUATION)
def test_an_evaluation(monkeypatch, case):
    name, change = EVALUATION[case]
    refused(monkeypatch, plain(), evaluation(**change()), name)


def test_the_same_evaluation():
    assert evaluation().facts() == plain().facts()


def test_the_confirmation_of_an_evaluation(monkeypatch):
    one, two = (evaluation(search_precision="bf16", confirm=each) for each in (True, False))
    refused(monkeypatch, one, two, "settings")


# ---- the bank ------------------------------------------------------------------------------------


def bank(data=None, seed_of_clip=0, **options):
    settings = {**LITTLE, "eps": "8/255", "attack_batch": 2, **options}
    tuner = AdvPTTuner(clip(seed_of_clip), NAMES, **settings)
    return work_of(tuner.fit, data or images(), images())


@cache
def plain_bank():
    return bank()


BANK = {
    "weights": ("model", lambda: {"seed_of_clip": 1}),
    "eps": ("settings", lambda: {"eps": "4/255", "alpha": 1.25 * 8 / 255}),
    "alpha": ("settings", lambda: {"alpha": "1/255"}),
    "steps": ("settings", lambda: {"steps": 2, "alpha": 1.25 * 8 / 255}),
    "start": ("settings", lambda: {"start": "one-sided"}),
    "clamp": ("settings", lambda: {"clamp": "end"}),
    "seed": ("settings", lambda: {"seed": 1}),
    "batch": ("settings", lambda: {"attack_batch": 3}),
    "pixel": ("images", lambda: {"data": changed()}),
    "label": ("images", lambda: {"data": changed(label=2)}),
    "number": ("images", lambda: {"data": images(3)}),
}


@pytest.mark.parametrize("case", BANK)
def test_the_bank(monkeypatch, case):
    name, change = BANK[case]
    refused(monkeypatch, plain_bank(), bank(**change()), name)


def test_the_same_bank():
    assert bank().facts() == plain_bank().facts()


# ---- predictions ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(pictures()):
        to_pil_image(pixels).save(folder / f"{i}.png")
    return folder


def chunks(folder, classifier=None, **options):
    paths = sorted(folder.iterdir())
    return work_of(predict, classifier or model(), paths, **{"batch": 2, **options})


CHUNKS = {
    "weights": ("model", lambda: {"classifier": model(seed=1)}),
    "prompt": ("model", lambda: {"classifier": model(template="a drawing of a {}.")}),
    "precision": ("model", lambda: {"classifier": model().in_precision("bf16")}),
    "batch": ("settings", lambda: {"batch": 3}),
}


@pytest.mark.parametrize("case", CHUNKS)
def test_predictions(monkeypatch, folder, case):
    name, change = CHUNKS[case]
    assert chunks(folder).facts() == chunks(folder).facts()
    refused(monkeypatch, chunks(folder), chunks(folder, **change()), name)


def test_class_names_of_predictions(monkeypatch, folder):
    own, theirs = chunks(folder), chunks(folder)
    theirs.classifier.classnames = [*NAMES[:2], "owl"]
    refused(monkeypatch, own, theirs, "settings")


def inverted(path):
    with Image.open(path) as image:
        other = ImageOps.invert(image.convert("RGB"))
    other.save(path)


FILES = {
    "another picture": inverted,
    "no picture": lambda path: path.write_bytes(b"no picture"),
    "no file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", FILES)
def test_pictures_that_are_predicted(monkeypatch, folder, case):
    work = chunks(folder)
    before = work.facts()
    FILES[case](folder / "3.png")
    refused(monkeypatch, work, chunks_of(work), "pictures", before)


def chunks_of(work):
    """The work as another process has it, which looks at its files again."""
    return type(work)(work.classifier, work.batch, work.workers, work.some)


# ---- protocols -----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    for name in ("Caltech101", "OxfordPets"):
        write_split(tmp_path / "data", name)
    return tmp_path / "data"


def cells(root, out, seed_of_clip=0, precision="fp32", **options):
    given = {"eps": "8/255", "attacks": "pgd-1", "limit": 8, "sanity": "off", "seeds": (1,)}
    plan = make_plan(
        *("few-shot", "zero-shot,apt", "coop:Caltech101,coop:OxfordPets"),
        clip=clip(seed_of_clip),
        root=root,
        shots=(1,),
        settings={"all": {**LITTLE, "precision": precision}},
        **{**given, "scoring": "published", **options},
    )
    shutil.rmtree(out, ignore_errors=True)
    return work_of(protocols.execute, plan, out)


CELLS = {
    "limit": {"limit": 9},
    "seeds": {"seeds": (2,)},
    "radius of the attacks": {"eval_eps": "4/255"},
    "radius of the tuning": {"eps": "4/255", "eval_eps": "8/255"},
    "attacks": {"attacks": "pgd-2"},
    "batch": {"batch": 50},
    "sanity": {"sanity": "quick"},
    "scoring": {"scoring": "published:nap"},
    "settings": {"precision": "fp64"},
}


@pytest.mark.parametrize("case", CELLS)
def test_settings_of_a_protocol(monkeypatch, root, tmp_path, case):
    own = cells(root, tmp_path / "out", eval_eps="8/255")
    theirs = cells(root, tmp_path / "other", **{"eval_eps": "8/255", **CELLS[case]})
    refused(monkeypatch, own, theirs, "settings")


def test_the_model_of_a_protocol(root, tmp_path):
    own, theirs = (cells(root, tmp_path / str(i), seed_of_clip=i).facts() for i in range(2))
    # the settings name the model's hash, too
    assert [k for k in own if own[k] != theirs[k]] == ["model", "settings"]


def test_the_working_directory_of_a_protocol_may_differ(root, tmp_path, monkeypatch):
    own = cells(root, tmp_path / "out").facts()
    monkeypatch.chdir(tmp_path)
    assert cells(root, tmp_path / "out").facts() == own


def test_the_data_of_a_protocol(monkeypatch, root, tmp_path):
    own = cells(root, tmp_path / "out")
    before = own.facts()
    assert {k for k in before if k.startswith("data ")} == {
        "data 'coop:Caltech101'",
        "data 'coop:OxfordPets'",
    }
    for path in (root / "oxford_pets" / "images").glob("*/test_*.jpg"):
        inverted(path)
    theirs = cells(root, tmp_path / "out")
    refused(monkeypatch, own, theirs, "data 'coop:OxfordPets'", before)


def test_data_that_a_worker_lacks(monkeypatch, root, tmp_path):
    own = cells(root, tmp_path / "out")
    before = own.facts()
    monkeypatch.setattr(own, "facts", lambda: before)
    theirs = cells(root, tmp_path / "out")
    shutil.rmtree(root / "oxford_pets")
    installed(monkeypatch, theirs=theirs)
    words = r"could not start: .*oxford_pets"
    with Ray().team(own, torch.device("cpu")) as team, pytest.raises(RuntimeError, match=words):
        next(team.each([0]))


@pytest.mark.parametrize("case", [{"precision": "auto"}, {"scoring": "strict"}])
def test_bfloat16_units_of_a_protocol(monkeypatch, root, tmp_path, case):
    own, theirs = cells(root, tmp_path / "out", **case), cells(root, tmp_path / "out", **case)
    before = own.facts()
    assert before["bfloat16 units"] == "no"
    monkeypatch.setattr(finishing, "multiplies_bf16", lambda device: True)
    refused(monkeypatch, own, theirs, "bfloat16 units", before)


def test_a_protocol_without_a_choice_of_precision_does_not_ask_for_bfloat16(root, tmp_path):
    assert "bfloat16 units" not in cells(root, tmp_path / "out").facts()


# ---- data of files -------------------------------------------------------------------------------


def test_files_of_an_evaluation_and_of_a_bank(monkeypatch, tmp_path):
    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, pixels in enumerate(pictures(3, seed=len(name))):
            to_pil_image(pixels).save(tmp_path / "data" / name / f"{i}.png")

    def works():
        data = load_data(tmp_path / "data").for_model(clip())
        tuner = AdvPTTuner(clip(), data.classnames, **LITTLE, attack_batch=2)
        return evaluation(data.test), work_of(tuner.fit, data.train, data.train)

    works_here = works()
    before = [work.facts() for work in works_here]
    for path in (tmp_path / "data").glob("*/*.png"):
        inverted(path)
    for own, theirs, facts in zip(works_here, works(), before, strict=True):
        refused(monkeypatch, own, theirs, "images", facts)


def test_a_copy_of_a_tar_file_with_another_time(monkeypatch, tmp_path):
    rows = picture_sources.write(tmp_path / "pictures", {"": 4})
    files = picture_sources.samples_of(tmp_path / "pictures", rows, "txt")
    shard = picture_sources.write_tar(tmp_path / "shards" / "a.tar", files)
    work = evaluation(load_data(tmp_path / "shards", image_size=48).test)
    before = work.facts()
    tar_shards._opened.cache_clear()  # as in another process
    assert work.facts() == before
    os.utime(shard, (0, 0))
    tar_shards._opened.cache_clear()
    installed(monkeypatch, theirs=copy.copy(work))
    monkeypatch.setattr(work, "facts", lambda: before)
    words = r"could not start: ValueError: .*a\.tar has changed since it was listed; .*cp -p"
    with Ray().team(work, torch.device("cpu")) as team, pytest.raises(RuntimeError, match=words):
        next(team.each([0]))
