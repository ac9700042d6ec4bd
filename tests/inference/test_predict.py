"""`fastprompt.predict`: equal predictions of every kind of source, and what cannot be read."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from helpers import picture_sources
from PIL import Image, ImageSequence
from torchvision.transforms.functional import normalize

from fastprompt import TextContext, load_clip, predict
from fastprompt.clip.preprocess import Preprocess
from fastprompt.inference import running
from fastprompt.inference.sources import find_pictures
from fastprompt.model import PromptedCLIP

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def classifier(small_clip):
    return small_clip.zero_shot(NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures in folders, without a label in their names, and their paths in order."""
    root = tmp_path_factory.mktemp("pictures")
    picture_sources.write(root, {"": 2})
    (root / "notes.txt").write_text("no picture")
    return root


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


def pixels_of(classifier, paths):
    return torch.stack([classifier.preprocess(Image.open(path)) for path in paths])


# ---- the transform -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(64, 48), (31, 90), (48, 48)])
def test_the_transform_is_open_clips_before_the_normalization(classifier, mode, size):
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.byte().numpy()).convert(mode)
    clip, pixels = classifier.clip, classifier.preprocess(image)
    assert pixels.dtype == torch.float32
    assert pixels.shape == clip.pixel_shape
    assert 0 <= pixels.min() <= pixels.max() <= 1
    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    theirs = open_clip.image_transform(48, is_train=False, mean=mean, std=std)
    assert torch.equal(normalize(pixels, mean, std), theirs(image))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_the_transform_follows_the_models_settings(small_clip, mode, monkeypatch):
    own = {"resize_mode": mode, "interpolation": "bilinear", "fill_color": 7}
    monkeypatch.setattr(small_clip.model.visual, "preprocess_cfg", own, raising=False)
    noise = torch.randint(0, 256, (20, 70, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.byte().numpy())
    theirs = open_clip.image_transform(48, is_train=False, mean=(0,) * 3, std=(1,) * 3, **own)
    assert torch.equal(small_clip.zero_shot(NAMES).preprocess(image), theirs(image))


# ---- sources -----------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_predictions_of_the_pixels(classifier, folder, tmp_path):
    paths = files_in(folder)
    assert len(paths) == 6
    pixels = pixels_of(classifier, paths)
    wanted = classifier(pixels).softmax(-1)
    rows = [{"path": str(path)} for path in paths]
    tar = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]
    images = [Image.open(path) for path in paths]
    given = {
        "a tensor": pixels,
        "a folder": folder,
        "a pattern": str(folder / "**" / "*.[pj]*g"),
        "files": paths,
        "texts": [str(path) for path in paths],
        "images": images,
        "a mixture": [paths[0], *images[1:]],
        "a generator": (path for path in paths),
        "CSV": picture_sources.write_manifest(tmp_path / "list.csv", rows),
        "JSON Lines": picture_sources.write_manifest(tmp_path / "list.jsonl", rows),
        "a tar file": picture_sources.write_tar(tmp_path / "tar" / "0.tar", tar),
        "a folder of tar files": tmp_path / "tar",
    }
    for kind, source in given.items():
        found = predict(classifier, source, batch=4)
        assert torch.allclose(found.probabilities, wanted, rtol=1e-5), kind
        assert found.labels.tolist() == wanted.argmax(-1).tolist(), kind
        assert found.names == [NAMES[label] for label in found.labels], kind
        assert found.unread == {}
        assert len(found) == len(found.paths) == 6
    assert predict(classifier, folder).paths == [str(path) for path in paths]
    assert predict(classifier, images[0]).paths == ["image 0"]


def test_in_float64_the_probabilities_are_those_of_the_classifier(small_clip, folder):
    classifier = small_clip.zero_shot(NAMES, precision="fp64")
    found = predict(classifier, folder, batch=3, embeddings=True)
    pixels = pixels_of(classifier, files_in(folder))
    assert found.probabilities.dtype == torch.float64
    for part, own in zip(pixels.split(3), found.probabilities.split(3), strict=True):
        assert torch.equal(own, classifier(part).softmax(-1))
    features = classifier.encode_image(pixels)
    assert torch.allclose(found.embeddings, features, rtol=1e-12)
    assert predict(classifier, folder).embeddings is None
    warm = predict(classifier, folder, temperature=2.0)
    assert torch.allclose(warm.probabilities, (classifier(pixels) / 2).softmax(-1), rtol=1e-12)
    assert warm.temperature == 2.0


def test_prompts_are_used(small_clip, folder):
    torch.manual_seed(1)
    model = PromptedCLIP(small_clip, NAMES, TextContext(2, 24))
    found = predict(model.classifier(), folder)
    wanted = model(pixels_of(model.classifier(), files_in(folder))).softmax(-1)
    assert torch.allclose(found.probabilities, wanted, rtol=1e-5)


def test_what_pillow_opens_is_read(classifier, folder, tmp_path):
    image = Image.open(files_in(folder)[0]).convert("RGB")
    for kind in ("png", "bmp", "tiff", "gif", "webp", "ppm", "tga", "ico", "pcx"):
        image.save(tmp_path / f"a.{kind}")
    image.save(tmp_path / "without_ending", "PNG")
    every = {path.name for path in tmp_path.iterdir()}
    found = predict(classifier, str(tmp_path / "*"))
    assert found.unread == {}
    assert {Path(path).name for path in found.paths} == every
    # of a folder, those whose names end as those of pictures do in data sets
    found = predict(classifier, tmp_path)
    assert {Path(path).name for path in found.paths} == every - {"a.ico", "a.pcx", "without_ending"}


def test_what_cannot_be_read_is_listed_and_the_others_are_predicted(classifier, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "all")
    root = tmp_path / "all"
    (root / "empty.png").touch()
    (root / "cut.jpg").write_bytes(files_in(folder)[1].read_bytes()[:200])
    (root / "text.jpg").write_text("no picture")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    found = predict(classifier, [root, root / "notes.txt"], batch=2)
    assert {Path(path).name for path in found.unread} == {
        *("empty.png", "cut.jpg", "text.jpg", "gone.png", "notes.txt")
    }
    assert "no such file" in found.unread[str(root / "gone.png")]
    assert len(found) == 6
    wanted = predict(classifier, folder).probabilities
    assert torch.allclose(found.probabilities, wanted, rtol=1e-5)
    lost = predict(classifier, root / "text.jpg")
    assert len(lost) == 0
    assert lost.probabilities.shape == (0, 3)


def test_a_manifest_may_list_pictures_that_are_gone(classifier, folder, tmp_path):
    names = [path.name for path in files_in(folder)[:1]]
    shutil.copy(files_in(folder)[0], tmp_path)
    (tmp_path / "list.csv").write_text(f"path\n{names[0]}\ngone.png\n")
    found = predict(classifier, tmp_path / "list.csv")
    assert [Path(p).name for p in found.paths] == names
    assert list(found.unread) == [str(tmp_path / "gone.png")]


def test_each_picture_is_found_once(folder):
    paths = files_in(folder)
    found = find_pictures([paths[3], folder, str(folder / "*" / "*.png")])
    assert [picture.path for picture in found] == [paths[3], *paths[:3], *paths[4:]]


def test_decoding_is_at_most_two_batches_ahead(classifier, folder):
    asked, given = [], 0

    def pictures():
        for i in range(40):
            asked.append(i)
            yield Image.open(files_in(folder)[0])

    from fastprompt.inference.running import run

    for part in run(classifier, pictures(), 4, 2):
        given += len(part.read)
        assert len(asked) <= given + 2 * 4 + 1
    assert given == 40


def test_an_attack_follows_a_prediction():
    from helpers.models import small_model

    from fastprompt import PGD

    classifier = load_clip(small_model(seed=5)).zero_shot(NAMES)
    images = torch.rand(2, 3, 48, 48)
    predict(classifier, images)
    assert PGD(classifier, 4 / 255, 1 / 255, 1).run(images, torch.tensor([0, 1])).images.shape


def test_an_error_that_is_not_the_pictures_stops_the_prediction(classifier, monkeypatch):
    """Otherwise the pictures would be missing without a sign."""

    def broken(*_):
        raise RuntimeError("of the machine")

    picture = Image.new("RGB", (8, 8))
    monkeypatch.setattr(Preprocess, "__call__", broken)
    with pytest.raises(RuntimeError, match="of the machine"):
        predict(classifier, [picture])


def test_each_frame_of_an_iterator_is_predicted(classifier, tmp_path):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (6, 40, 40, 3), generator=generator).byte().numpy()
    frames = [Image.fromarray(one).quantize(64) for one in noise]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as gif:
        found = predict(classifier, ImageSequence.Iterator(gif), batch=2)
        copies = [frame.copy() for frame in ImageSequence.Iterator(gif)]
    wanted = predict(classifier, copies, batch=2)
    assert len(found) == 6
    assert torch.equal(found.probabilities, wanted.probabilities)


def test_an_image_may_be_given_several_times(classifier, folder):
    image = Image.open(files_in(folder)[1])
    found = predict(classifier, [image] * 8, workers=8)
    assert len(found) == 8
    assert found.unread == {}


def test_pictures_beside_an_archive_and_in_folders_of_a_pattern_are_found(folder, tmp_path):
    picture = files_in(folder)[0]
    for place in (tmp_path, tmp_path / "a" / "2024"):
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    (tmp_path / "some.tar").touch()
    assert len(find_pictures([tmp_path])) == 2
    assert [p.path.parent.name for p in find_pictures([str(tmp_path / "**" / "2024")])] == ["2024"]


def test_an_error_of_the_machine_is_not_the_pictures(classifier, folder, monkeypatch):
    def full(self):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(OSError, match="Too many open files"):
        predict(classifier, folder)


def test_progress_has_the_rate_and_what_could_not_be_read(monkeypatch):
    clock = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    notes, done = [], []
    bar = SimpleNamespace(note=notes.append, update=done.append)
    parts = [SimpleNamespace(read=[0, 1, 2], unread=[]), SimpleNamespace(read=[3], unread=[4, 5])]
    assert list(running.told(parts, bar)) == parts
    assert notes == ["1.5 img/s", "1.5 img/s, 2 unread"]
    assert done == [3, 3]
