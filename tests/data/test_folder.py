"""Image folders as users have them: their layouts, their picture files, their class names."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastprompt.data import load_data
from fastprompt.data.decode import decode
from fastprompt.data.load import load_recorded
from fastprompt.data.splits import Source

PARTS = ("train", "val", "test")
NOISE = np.random.default_rng(0)


def write(folder: Path, n: int = 3) -> None:
    """A class folder of ``n`` small pictures; no two pictures are alike."""
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = NOISE.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def tree(root: Path, *folders: str, n: int = 3) -> Path:
    for folder in folders:
        write(root / folder, n)
    return root


def sizes(root: Path, **options: object) -> list[int]:
    data = load_data(root, image_size=16, **options)
    return [len(getattr(data, part)) for part in PARTS]


# ---- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "validation", "test"),
        ("Train", None, "Test"),
        ("training", None, "testing"),
        ("TRAIN", "Valid", "TEST"),
        ("train", None, "validation"),
        ("train", "dev", "test"),
    ],
)
def test_split_folders_are_recognized_by_their_usual_names(tmp_path, train, val, test):
    for folder, n in ((train, 5), (val, 1), (test, 2)):
        if folder:
            tree(tmp_path / folder, "ant", "bee", n=n)
    data = load_data(tmp_path, image_size=16)
    assert data.classnames == ["ant", "bee"]
    assert [len(d) for d in (data.train, data.val, data.test)] == [10 if val else 8, 2, 4]


def test_train_alone_is_cut_and_told(tmp_path, caplog):
    tree(tmp_path, "train/ant", "train/bee", n=10)
    assert sizes(tmp_path) == [14, 2, 4]
    assert "no test folder" in caplog.text
    assert set(load_data(tmp_path).train.data.files) < set((tmp_path / "train").glob("*/*"))


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, "bus", "car", "train")
    assert load_data(tmp_path).classnames == ["bus", "car", "train"]


def test_a_test_folder_alone_can_be_evaluated(tmp_path):
    tree(tmp_path, "test/ant", "test/bee")
    data = load_data(tmp_path, image_size=16)
    assert len(data.test) == 6
    with pytest.raises(ValueError, match=r"^data: .* no train images"):
        _ = data.train


JUNK = ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "ant/.ipynb_checkpoints", "ant/__MACOSX")


def test_what_tools_leave_behind_is_no_class_and_no_picture(tmp_path):
    tree(tmp_path, "ant", "bee", *JUNK)
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "notes.txt"):
        (tmp_path / "bee" / name).write_bytes(b"no picture")
    assert load_data(tmp_path).classnames == ["ant", "bee"]
    assert sum(sizes(tmp_path)) == 6


def test_pictures_may_lie_one_folder_below_their_class(tmp_path):
    tree(tmp_path, "ant/images", "bee/images")  # as in Tiny ImageNet
    assert load_data(tmp_path).classnames == ["ant", "bee"]
    assert sum(sizes(tmp_path)) == 6


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["set/ant", "set/bee"], r"'set' has only the folders 'ant', 'bee'.* pass .*/set$"),
        (["set/train/ant", "set/test/ant"], r"'set' has .*'test', 'train'.* pass .*/set$"),
        (["a/ant", "a/bee", "b/ant", "b/bee"], r"'a' has only the folders 'ant', 'bee'"),
        (["train/ant", "train/bee", "holdout/ant"], r"'holdout'.* name .* test"),
        (["train/ant", "Training/ant"], "two train folders, 'Training' and 'train'"),
        (["train/ant", "train/bee", "test"], "/test must have one folder of pictures per class"),
        (["train", "test"], "must have one folder of pictures per class"),
        (["train/ant", "train/bee", "test/ant"], r"lacks is 'bee'"),
        (["train/ant", "train/bee", "test/ant", "test/wasp"], "class 1 is 'wasp' .* 'bee'"),
        (["ant"], "only the class 'ant'"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(tmp_path, folders, message):
    tree(tmp_path, *folders, n=1)
    with pytest.raises(ValueError, match=f"^data: .*{message}"):
        load_data(tmp_path)


@pytest.mark.parametrize("files", [[], ["list.txt", "more.json"]])
def test_a_class_folder_without_pictures_is_named(tmp_path, files):
    tree(tmp_path, "ant", "bee")
    (tmp_path / "cow").mkdir()
    for name in files:
        (tmp_path / "cow" / name).write_text("nothing")
    with pytest.raises(ValueError, match=f"^data: .*'cow' has .*{'.*'.join(files)}.*no pictures"):
        load_data(tmp_path)


def test_a_folder_beside_the_splits_is_told(tmp_path, caplog):
    tree(tmp_path, "train/ant", "train/bee", "test/ant", "test/bee", "unlabeled/a")
    assert sizes(tmp_path) == [4, 2, 6]
    assert "'unlabeled'" in caplog.text


def test_a_class_that_is_too_small_to_be_cut_is_named(tmp_path):
    tree(tmp_path, "ant", n=10)
    tree(tmp_path, "bee", n=2)
    with pytest.raises(ValueError, match=r"^data: .* test split: 2 in 'bee'; .*\b3\b"):
        _ = load_data(tmp_path).train


# ---- pictures ----------------------------------------------------------------------------------

RAMP = np.linspace(0, 255, 16 * 20).reshape(16, 20)


def values(path: Path) -> np.ndarray:
    image = decode(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bits_are_scaled_to_8(tmp_path, name):
    Image.fromarray(np.rint(RAMP * 257).astype(np.uint16)).save(tmp_path / name)
    assert np.abs(values(tmp_path / name) - RAMP[..., None]).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bits_are_refused(tmp_path, dtype):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"^data: .*wide.tif .*32-bit .* 8 or 16"):
        decode(tmp_path / "wide.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_orientation_says(tmp_path, orientation):
    pixels = NOISE.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    rows, columns = np.rot90(pixels), np.rot90(pixels, -1)
    wanted = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]
    wanted += [columns[:, ::-1], columns, rows[:, ::-1], rows]
    assert np.array_equal(values(tmp_path / "a.png"), wanted[orientation - 1])


@pytest.mark.parametrize("kind", ["gif", "avif", "jfif", "webp", "bmp", "tiff", "JPG", "jp2"])
def test_pictures_of_these_kinds_are_read(tmp_path, kind):
    if f".{kind.lower()}" not in Image.registered_extensions():
        pytest.skip("this Pillow does not write them")
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(3):
            gray = Image.fromarray(np.full((16, 16), 60 + 20 * i, dtype=np.uint8))
            gray.save(tmp_path / name / f"{i}.{kind}")
    data = load_data(tmp_path, image_size=16)
    image, _ = data.test[0]
    assert image.float().std() < 2
    assert round(float(image.float().mean())) in (60, 80, 100)
    assert sum(sizes(tmp_path)) == 6


def test_transparent_areas_are_white(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    palette = Image.fromarray(pixels[..., :3]).quantize(2)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 1)))
    for name in ("a.png", "p.png"):
        assert values(tmp_path / name)[:, 0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_inks_and_several_frames(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
    red, green, blue = values(tmp_path / "a.jpg")[0, 0]
    assert red < 10 < 240 < min(green, blue)
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert values(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


BROKEN = {
    "text.png": b"no picture",
    "empty.jpg": b"",
    "header.png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "header.tif": b"II*\0" + bytes([8, 0, 0, 0, 255, 255]),
    "header.gif": b"GIF89a\x10\0",
    "phone.heic": b"\0\0\0\x18ftypheic",
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "hidden.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_readable_picture_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=f"^data: .*{name} is unreadable .*; .*remove"):
        decode(tmp_path / name)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "gif"])
def test_a_file_that_is_cut_short_is_named(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(NOISE.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"^data: .*a.{kind} is unreadable"):
        decode(path)


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch, caplog):
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match=r"^data: .*bomb.png .*MAX_IMAGE_PIXELS"):
        decode(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    tree(tmp_path, "ant", "bee")
    (tmp_path / "bomb.png").rename(tmp_path / "ant" / "1.png")
    with pytest.warns(Image.DecompressionBombWarning):
        _ = load_data(tmp_path).train
    assert "ant/1.png is very large" in caplog.text


def test_a_damaged_exif_block_has_no_orientation(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense")
    assert decode(tmp_path / "a.jpg").size == (4, 6)


# ---- broken pictures ---------------------------------------------------------------------------


def spoil(data_part, row: int = 0) -> Path:
    path = data_part.data.files[row]
    path.write_bytes(b"no picture")
    return path


def test_a_broken_test_picture_is_found_with_the_training_pictures(tmp_path):
    tree(tmp_path, "ant", "bee", n=5)
    broken = spoil(load_data(tmp_path).test)
    with pytest.raises(ValueError, match=f"^data: {broken} .*on_error='skip'"):
        _ = load_data(tmp_path).train


def test_broken_pictures_are_left_out_and_counted(tmp_path, caplog):
    tree(tmp_path, "train/ant", "train/bee", "test/ant", "test/bee", n=8)
    options = {"image_size": 16, "shots": 2}
    whole = load_data(tmp_path, **options)
    files = [whole.train.data.files[row] for row in whole.train.rows]
    print_before = whole.train.fingerprint
    broken = [files[0], spoil(whole.test)]
    broken[0].write_bytes(b"no picture")
    data = load_data(tmp_path, on_error="skip", **options)
    assert [len(d) for d in (data.train, data.val, data.test)] == [4, 2, 15]
    drawn = [data.train.data.files[row] for row in data.train.rows]
    assert set(files[1:]) < set(drawn)  # another image of the class takes the place
    assert not set(broken) & set(drawn)
    assert data.train.fingerprint != print_before
    assert data.train.source["unreadable"] == {"train": 1, "val": 0, "test": 1}
    assert (data.train.unreadable, data.test.unreadable) == (1, 1)
    assert "1 unreadable train images" in caplog.text
    assert all(isinstance(label, int) for _, label in data.test)


def test_a_class_without_a_readable_picture_is_refused(tmp_path):
    tree(tmp_path, "ant", "bee", n=3)
    spoil(load_data(tmp_path).test)
    with pytest.raises(ValueError, match=r"^data: .* no readable test image"):
        _ = load_data(tmp_path, on_error="skip").train


# ---- class names and templates -----------------------------------------------------------------

FOLDERS = ("n01440764", "n01443537", "n01484850")
NAMES = ["tench", "gold fish", "great white shark"]


def files_of_names(folder: Path) -> dict[str, Path]:
    mapping = dict(zip(FOLDERS, NAMES, strict=True))
    texts = {
        "names.json": json.dumps(dict(reversed(mapping.items()))),
        "names.yaml": "".join(f"{k}: {v}\n" for k, v in mapping.items()),
        "coop.txt": "".join(f"{k} {v}\n" for k, v in reversed(mapping.items())),
        "order.txt": "\n".join(NAMES) + "\n\n",
        "list.json": json.dumps(NAMES),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("wordnet"), *FOLDERS)


def test_class_names_of_a_folder_are_given(wordnet, tmp_path):
    given = [*files_of_names(tmp_path).values(), NAMES, dict(zip(FOLDERS, NAMES, strict=True))]
    for names in given:
        assert load_data(wordnet, classnames=names).classnames == NAMES, names
    base = load_data(wordnet, classnames=NAMES, classes="base", shots=1)
    assert base.classnames == NAMES[:2]
    again = load_data(**json.loads(json.dumps(base.arguments)))
    assert again.classnames == base.classnames
    assert again.train.fingerprint == base.train.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({FOLDERS[0]: "a", FOLDERS[1]: "b"}, f"1 have no name: '{FOLDERS[2]}'"),
        (dict.fromkeys([*FOLDERS, "n1"], "a"), "1 are not classes: 'n1'"),
        (["a", "b"], "2 names for 3 classes"),
        (["a", "b", "a"], "'a' twice"),
        ("a\nb\n", "2 names for 3 classes: 'a', 'b' for 'n01440764'"),
        (f"{FOLDERS[0]} a\n{FOLDERS[0]} b\n", f"'{FOLDERS[0]}' twice"),
        (f"{FOLDERS[0]} a\n{FOLDERS[1]} b\n", f"no name: '{FOLDERS[2]}'"),
        ("", "empty"),
    ],
)
def test_class_names_that_do_not_fit_show_the_first(wordnet, tmp_path, given, message):
    if isinstance(given, str):
        (tmp_path / "names.txt").write_text(given)
        given = tmp_path / "names.txt"
    with pytest.raises(ValueError, match=f"^classnames.*{message}"):
        load_data(wordnet, classnames=given)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "a: 1\na: 2\n", "[1", "just words"])
def test_a_file_of_names_that_is_damaged_is_named(wordnet, tmp_path, text):
    path = tmp_path / ("names.json" if text[0] in "{[" else "names.yaml")
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^classnames: {path} "):
        load_data(wordnet, classnames=path)
    with pytest.raises(FileNotFoundError, match=r"^classnames: .*none.txt"):
        load_data(wordnet, classnames="none.txt")


def test_templates_are_given_as_texts_or_as_a_file(wordnet, tmp_path):
    (tmp_path / "templates.txt").write_text("a {}.\n\nthe {}.\n")
    for given in (["a {}.", "the {}."], tmp_path / "templates.txt"):
        data = load_data(wordnet, templates=given)
        assert data.templates == ("a {}.", "the {}.")
        assert load_data(**data.arguments).templates == data.templates
    assert load_data("patterns", templates="some {}").templates == ("some {}",)
    for wrong, error in (("no place", FileNotFoundError), (["{} {}"], ValueError)):
        with pytest.raises(error, match=r"^templates.*\{\}"):
            load_data(wordnet, templates=wrong)


# ---- recorded data -----------------------------------------------------------------------------


def test_a_recorded_folder_is_found_from_another_directory(tmp_path, monkeypatch):
    tree(tmp_path / "here" / "pictures", "ant", "bee")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = load_data("./pictures", image_size=16)
    source = json.loads(json.dumps(data.train.source))
    assert (source["name"], source["directory"]) == ("./pictures", str(tmp_path / "here"))
    assert load_recorded(source).name == "./pictures"
    monkeypatch.chdir(tmp_path / "there")
    again = load_recorded(source, classes="all")
    assert again.train.fingerprint == data.train.fingerprint
    with pytest.raises(FileNotFoundError, match=r"^data: .*pictures"):
        load_recorded(source, name="./pictures")
    for wrong in ({"name": "./pictures", "directory": 3}, {"name": "./pictures", "root": 3}):
        with pytest.raises(TypeError, match=r"^(directory|root) must be a path"):
            load_recorded({"directory": str(tmp_path / "here"), **wrong})


def test_a_recorded_torchvision_set_is_no_folder_of_that_name(tmp_path, monkeypatch):
    """A folder with the name of the set stands where the run was started."""
    (tmp_path / "CIFAR10").mkdir()
    (tmp_path / "data").mkdir()
    asked = []

    def found(name, root, download, unseen_by):
        asked.append((name, None if root is None else str(root)))
        return Source(["ant", "bee"], None, ())

    monkeypatch.setattr("fastprompt.data.load.find_source", found)
    load_recorded({"name": "CIFAR10", "root": "data", "directory": str(tmp_path)})
    load_recorded({"name": "CIFAR10", "directory": str(tmp_path)})
    assert asked == [("CIFAR10", str(tmp_path / "data")), ("CIFAR10", None)]


def test_every_split_of_loaded_data_says_where_it_comes_from():
    data = load_data("patterns", shots=1, seed=4, image_size=16)
    for part in ("train", "val"):
        source = getattr(data, part).source
        assert (source["name"], source["seed"], source["image_size"]) == ("patterns", 4, 16)
        assert "directory" not in source
    larger = data.resized(24, channels=1)
    assert larger.train.images.shape[1:] == (1, 24, 24)
    assert torch.equal(larger.train.labels, data.train.labels)


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.WARNING)
