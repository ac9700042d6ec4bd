import itertools
import math
import re
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastprompt.data.builtin import draw_split
from fastprompt.data.sdf import PATTERNS, SHAPES
from fastprompt.data.shapes import (
    COLORS,
    COUNTS,
    SIZES,
    Rendering,
    Scenes,
    hsv_to_rgb,
    render,
)
from fastprompt.data.splits import Form
from pretraining.captions import describe_scenes

# nothing but the objects, on a middle gray
BARE = Rendering(
    hue_shift=(0, 0),
    saturation=(1, 1),
    value=(1, 1),
    contrast=(1, 1),
    brightness=(0, 0),
    background=(0.5, 0.5),
    tint=0,
    texture=(0, 0),
    blur=(0, 0),
    noise=0,
)
GRAY = 128
# as CSS defines the names
NAMED = {
    "red": (255, 0, 0),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "green": (0, 128, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
    "pink": (255, 192, 203),
}


def random_scenes(n: int, seed: int = 0) -> Scenes:
    return Scenes.random(n, torch.Generator().manual_seed(seed))


def scene(
    shape: str = "circle",
    color: str = "red",
    pattern: str = "plain",
    count: str = "one",
    size: str = "large",
) -> Scenes:
    lists = ((SHAPES, shape), (COLORS, color), (PATTERNS, pattern), (COUNTS, count))
    return Scenes(*(torch.tensor([known.index(x)]) for known, x in (*lists, (SIZES, size))))


def painted(picture: Tensor) -> Tensor:
    """Where a picture in the bare world is not background: bool ``[H, W]``."""
    return (picture.int() - GRAY).abs().amax(dim=0) > 64


def inner(mask: Tensor) -> Tensor:
    """The pixels whose eight neighbors are all in the mask."""
    padded = torch.nn.functional.pad(mask.float()[None, None], (1, 1, 1, 1))
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1)[0, 0] > 0.999


def objects(mask: Tensor) -> list[int]:
    """Sizes of the connected regions, in pixels; a moon's thin tips may come off as specks."""
    left = {(int(row), int(column)) for row, column in mask.nonzero()}
    sizes = []
    while left:
        reached = [left.pop()]
        size = 0
        while reached:
            row, column = reached.pop()
            size += 1
            around = itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1))
            near = left.intersection(around)
            left -= near
            reached += near
        sizes.append(size)
    return [size for size in sizes if size > 3]


# ---- pictures ----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bits_whatever_the_threads() -> None:
    scenes = random_scenes(20)
    first = render(scenes, seed=3)
    torch.set_num_threads(2)
    assert torch.equal(render(scenes, seed=3), first)


@pytest.mark.parametrize(
    ("world", "form"),
    [
        ("shapes", Form(16)),
        ("patterns", Form((16, 24))),
        ("counts", Form(64, channels=1)),
        ("shapes-outline", Form(16)),
    ],
)
def test_the_default_dtype_changes_no_picture(
    request: pytest.FixtureRequest, world: str, form: Form
) -> None:
    """A split that was drawn for a float64 program would stay in the cache of its process."""
    of = (world, "val", form)
    wanted = draw_split.__wrapped__(*of)
    request.getfixturevalue("double")
    drawn = draw_split.__wrapped__(*of)
    assert torch.equal(drawn.images, wanted.images)
    assert torch.equal(drawn.labels, wanted.labels)


def test_another_seed_gives_other_pictures() -> None:
    scenes = random_scenes(150)
    same = (render(scenes, seed=3) == render(scenes, seed=4)).flatten(1)
    assert bool((same.float().mean(dim=1) < 0.5).all())


def test_pictures_of_one_scene_differ_within_a_call() -> None:
    scenes = Scenes(*(torch.zeros(300, dtype=torch.int64) for _ in range(5)))
    pictures = render(scenes)
    assert len(torch.unique(pictures.flatten(1), dim=0)) == 300


@pytest.mark.parametrize("size", [16, 48, 65])
def test_pictures_are_bytes_of_the_wanted_size(size: int) -> None:
    pictures = render(random_scenes(20), size=size)
    assert pictures.shape == (20, 3, size, size)
    assert pictures.dtype == torch.uint8
    assert int(pictures.min()) < 30
    assert int(pictures.max()) > 225


def test_no_scenes_give_no_pictures() -> None:
    pictures = render(random_scenes(0), size=32)
    assert pictures.shape == (0, 3, 32, 32)
    assert pictures.dtype == torch.uint8


def test_too_small_a_size_is_told() -> None:
    with pytest.raises(ValueError, match=r"^size .*16.*15"):
        render(random_scenes(1), size=15)


def test_two_thousand_pictures_take_less_than_five_seconds() -> None:
    scenes = random_scenes(2000)
    began = time.perf_counter()
    render(scenes)
    assert time.perf_counter() - began < 5.0


def test_every_attribute_is_drawn_evenly() -> None:
    scenes = random_scenes(12_000)
    for name, known in (
        ("shape", SHAPES),
        ("color", COLORS),
        ("pattern", PATTERNS),
        ("count", COUNTS),
        ("size", SIZES),
    ):
        share = torch.bincount(getattr(scenes, name), minlength=len(known)) / 12_000
        assert share.shape == (len(known),)
        # five standard deviations of a fair draw
        assert bool(((share - 1 / len(known)).abs() < 5 * (0.25 / 12_000) ** 0.5).all())


# ---- colors -----------------------------------------------------------------------------------


def test_hsv_corners() -> None:
    hue = torch.tensor([0.0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    corners = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]]
    full = torch.ones(7)
    torch.testing.assert_close(hsv_to_rgb(hue, full, full), torch.tensor(corners).float())
    torch.testing.assert_close(hsv_to_rgb(hue, 0 * full, 0.3 * full), torch.full((7, 3), 0.3))


def nearest(rgb: Tensor, reference: Tensor) -> str:
    return COLORS[int((reference - rgb).norm(dim=1).argmin())]


@pytest.mark.parametrize("color", COLORS)
def test_a_plain_circle_has_its_color_everywhere(color: str) -> None:
    picture = render(scene(color=color), BARE)[0]
    inside = picture[:, inner(painted(picture))].float()
    assert inside.shape[1] > 250
    assert bool((inside == inside[:, :1]).all())
    assert nearest(inside[:, 0], torch.tensor([NAMED[c] for c in COLORS]).float()) == color
    corners = picture[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert int((corners == GRAY).all(dim=0).sum()) >= 3


@pytest.mark.parametrize("seed", range(10))
def test_colors_can_be_told_in_the_pretraining_world(seed: int) -> None:
    bare = {c: render(scene(color=c), BARE, seed=seed)[0] for c in COLORS}
    inside = {c: inner(painted(picture)) for c, picture in bare.items()}
    palette = torch.stack([bare[c][:, inside[c]].float().mean(dim=1) for c in COLORS])
    for color in COLORS:
        picture = render(scene(color=color), seed=seed)[0].float()
        assert nearest(picture[:, inside[color]].mean(dim=1), palette) == color


# ---- shapes and patterns -----------------------------------------------------------------------


def test_shapes_differ_from_each_other() -> None:
    straight = replace(BARE, turn=0.0)
    masks = {shape: painted(render(scene(shape), straight)[0]) for shape in SHAPES}
    for one, other in itertools.combinations(SHAPES, 2):
        both, either = masks[one] & masks[other], masks[one] | masks[other]
        assert int(both.sum()) < 0.9 * int(either.sum()), (one, other)


def test_the_ring_alone_has_a_hole() -> None:
    straight = replace(BARE, turn=0.0)
    for shape in SHAPES:
        outside = objects(~painted(render(scene(shape), straight, size=64, seed=2)[0]))
        assert len(outside) == (2 if shape == "ring" else 1), shape


def test_large_is_larger_than_small() -> None:
    for shape, count in itertools.product(SHAPES, ("one", "four")):
        small, large = (
            painted(render(scene(shape, size=size, count=count), BARE)[0]).sum() for size in SIZES
        )
        assert int(large) > 1.2 * int(small), (shape, count)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_shows_on_the_object_and_nowhere_else(pattern: str) -> None:
    plain = render(scene(), BARE)[0]
    picture = render(scene(pattern=pattern), BARE)[0]
    changed = (picture.int() - plain.int()).abs().amax(dim=0) > 20
    inside = painted(plain)
    share = float(changed[inside].float().mean())
    assert share == 0 if pattern == "plain" else 0.15 < share < 0.95
    outside = (plain == GRAY).all(dim=0)
    assert torch.equal(picture[:, outside], plain[:, outside])


def test_patterns_differ_from_each_other() -> None:
    drawn = {p: render(scene(pattern=p), BARE)[0].int() for p in PATTERNS}
    inside = painted(render(scene(), BARE)[0])
    for one, other in itertools.combinations(PATTERNS, 2):
        apart = (drawn[one] - drawn[other]).abs().amax(dim=0)[inside] > 20
        assert float(apart.float().mean()) > 0.15, (one, other)


def test_outlines_are_hollow_and_as_wide_as_told() -> None:
    whole = painted(render(scene(), BARE)[0])
    thin, thick = (painted(render(scene(), replace(BARE, outline=w))[0]) for w in (2.0, 4.0))
    assert not bool((thin & ~thick).any())
    assert not bool((thick & ~whole).any())
    assert 0 < int(thin.sum()) < 0.6 * int(thick.sum())
    assert int(thick.sum()) < 0.6 * int(whole.sum())


@pytest.mark.parametrize("size", [48, 96])
def test_edges_are_one_pixel_wide(size: int) -> None:
    picture = render(scene(), BARE, size=size)[0]
    mask = painted(picture)
    color = picture[:, inner(mask)][:, :1, None]
    mixed = (picture != GRAY).any(dim=0) & (picture != color).any(dim=0)
    rim = 2 * (math.pi * int(mask.sum())) ** 0.5
    assert 0.8 * rim < int(mixed.sum()) < 1.25 * rim


def test_blur_is_a_five_pixel_binomial() -> None:
    sharp = render(scene("star", pattern="checkered"), BARE).float()
    soft = render(scene("star", pattern="checkered"), replace(BARE, blur=(1, 1))).float()
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5)
    padded = torch.nn.functional.pad(sharp, (2, 2, 2, 2), mode="replicate")
    expected = torch.nn.functional.conv2d(padded, kernel, groups=3)
    assert float((expected - sharp).abs().max()) > 50
    assert float((soft - expected).abs().max()) <= 1  # both were rounded to bytes


# ---- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_as_many_objects_as_the_count_says(count: str, size: str) -> None:
    for shape in SHAPES:
        for seed in range(4):
            picture = render(scene(shape, count=count, size=size), BARE, seed=seed)[0]
            sizes = objects(painted(picture))
            assert len(sizes) == COUNTS.index(count) + 1, (shape, seed)
            # objects that overlapped or left the picture would show less of themselves
            assert min(sizes) > 0.8 * max(sizes), (shape, seed)


def test_a_single_object_is_whole() -> None:
    for seed in range(20):
        alone = painted(render(scene(size="small"), BARE, seed=seed)[0])
        rows, columns = alone.any(dim=1).sum(), alone.any(dim=0).sum()
        assert abs(int(rows) - int(columns)) <= 1


# ---- captions ----------------------------------------------------------------------------------

NOUNS = ("shape", "object", "thing")
SENTENCE = re.compile(
    r"(?:an? (?:photo|picture|image|drawing) of |this picture shows )?(?P<what>[a-z ]+?)\.?"
)


def singular(word: str) -> str:
    return next(n for n in (*SHAPES, *NOUNS) if word in (n, n + "s", n + "es"))


def read(text: str) -> dict[str, str]:
    """What a caption says, from its words alone."""
    words = SENTENCE.fullmatch(text)["what"].split()
    said = {"noun": singular(words[-1]), "several": words[-1] != singular(words[-1])}
    if said["noun"] in SHAPES:
        said["shape"] = said["noun"]
    for word in words[:-1]:
        if word in ("a", "an"):
            said["count"] = "one"
        for name, known in (
            ("color", COLORS),
            ("pattern", PATTERNS),
            ("size", SIZES),
            ("count", COUNTS),
        ):
            if word in known:
                said[name] = word
    return said


def holds(said: dict[str, str], scenes: Scenes, i: int) -> bool:
    facts = {
        "shape": SHAPES[scenes.shape[i]],
        "color": COLORS[scenes.color[i]],
        "pattern": PATTERNS[scenes.pattern[i]],
        "size": SIZES[scenes.size[i]],
        "count": COUNTS[scenes.count[i]],
    }
    if said["several"] is (facts["count"] == "one"):
        return False
    return all(said[name] == fact for name, fact in facts.items() if name in said)


@pytest.fixture(scope="module")
def world() -> tuple[Scenes, list[str]]:
    scenes = random_scenes(1000, seed=1)
    return scenes, describe_scenes(scenes, torch.Generator().manual_seed(2)).texts


def test_every_caption_is_true_of_its_own_scene(world: tuple[Scenes, list[str]]) -> None:
    scenes, texts = world
    assert len(texts) == 1000
    assert all(holds(read(text), scenes, i) for i, text in enumerate(texts))


def test_captions_differ_in_what_they_name(world: tuple[Scenes, list[str]]) -> None:
    said = [read(text) for text in world[1]]
    for name in ("shape", "color", "pattern", "size", "count"):
        assert 250 < sum(name in facts for facts in said) < 950, name


def test_which_captions_are_true_is_what_their_words_say() -> None:
    scenes = random_scenes(150, seed=5)
    captions = describe_scenes(scenes, torch.Generator().manual_seed(6))
    others = random_scenes(200, seed=7)
    fast = captions.true_of(others)
    said = [read(text) for text in captions.texts]
    slow = torch.tensor([[holds(s, others, i) for s in said] for i in range(200)])
    assert fast.shape == (200, 150)
    assert torch.equal(fast, slow)
    assert 100 < int(fast.sum()) < 5000
    assert bool(captions.true_of(scenes).diagonal().all())


def test_captions_are_english(world: tuple[Scenes, list[str]]) -> None:
    texts = world[1]
    for text in texts:
        words = SENTENCE.fullmatch(text)["what"].split()
        plural = words[-1] != singular(words[-1])
        assert plural is (words[0] not in ("a", "an", "one"))
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
    together = " ".join(texts)
    for expected in ("crosses", "circles", "an arrow", "an orange", "one ", "a red", "two "):
        assert expected in together


def test_captions_are_the_same_for_a_seed() -> None:
    scenes = random_scenes(50)
    first, again, other = (
        describe_scenes(scenes, torch.Generator().manual_seed(seed)).texts for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
