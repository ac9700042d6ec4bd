"""Checks of arguments: right values pass unchanged, wrong ones are named with a remedy."""

import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastprompt._utils.checks import (
    check_classnames,
    check_count,
    check_image_size,
    check_images,
    check_labels,
    check_number,
    parse_fraction,
)
from fastprompt._utils.names import nearest, unknown

# ---- parse_fraction --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("4/255", 4 / 255),
        ("8 / 255", 8 / 255),
        (" 1/255\n", 1 / 255),
        ("0.5/255", 0.5 / 255),
        ("0.03", 0.03),
        ("1e-2", 0.01),
        (0.25, 0.25),
        (1, 1.0),
        ("1", 1.0),
        ("255/255", 1.0),
    ],
)
def test_a_distance_is_read_from_a_number_or_a_fraction(value, number):
    parsed = parse_fraction(value, "eps")
    assert parsed == number
    assert type(parsed) is float


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_fraction_is_the_nearest_float_to_it(above, below):
    exact = Fraction(above, below)
    if exact > 1:
        with pytest.raises(ValueError, match=r"^eps .*\b1\b"):
            parse_fraction(f"{above}/{below}", "eps")
    else:
        assert parse_fraction(f"{above}/{below}", "eps") == float(exact)


@settings(deadline=None)
@given(st.floats(0, 1, exclude_min=True))
def test_a_float_in_range_stays_as_it_is(number):
    assert parse_fraction(number, "eps") == number
    assert parse_fraction(repr(number), "eps") == number


@pytest.mark.parametrize("zero", [0, 0.0, "0", "0/255", "-0.0"])
def test_zero_only_where_it_is_allowed(zero):
    assert parse_fraction(zero, "eps", zero=True) == 0.0
    with pytest.raises(ValueError, match=rf"^eps .*\b0\b.* {zero!r}"):
        parse_fraction(zero, "eps")


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("negative", [-1, -1e-9, "-4/255", "4/-255", "-8"])
def test_negative_distances_are_refused(negative, zero):
    with pytest.raises(ValueError, match=rf"^alpha .*\b0\b.* {negative!r}"):
        parse_fraction(negative, "alpha", zero=zero)


@pytest.mark.parametrize("value", [8, 8.0, "8", "8.0", "16/2"])
def test_whole_pixel_values_are_taken_for_a_forgotten_255(value):
    with pytest.raises(ValueError, match=r"^eps .*\b1\b.* 8/255"):
        parse_fraction(value, "eps")


def test_no_impossible_fraction_is_offered():
    with pytest.raises(ValueError, match=r"^eps .*\b1\b.* 300\b") as error:
        parse_fraction(300, "eps")
    assert "/255" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "1/nan", "1e400"])
def test_distances_are_finite(value):
    with pytest.raises(ValueError, match=r"^eps .*finite"):
        parse_fraction(value, "eps", zero=True)


@pytest.mark.parametrize(
    "value",
    ["", " ", "/", "4/", "/255", "1/", "8/0", "0/0", "1/2/3", "four", "4:255", "0x1", "½", 10**400],
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r'^eps .*"4/255"'):
        parse_fraction(value, "eps", zero=True)


@pytest.mark.parametrize("value", [True, False, None, b"4/255", [0.1], 1j, torch.tensor(0.1)])
def test_only_numbers_and_strings_are_distances(value):
    with pytest.raises(TypeError, match=r'^eps .*"4/255"'):
        parse_fraction(value, "eps", zero=True)


@settings(deadline=None)
@given(st.one_of(st.text(), st.integers(), st.floats()), st.booleans())
def test_every_answer_is_in_range_or_a_value_error_that_names_the_argument(value, zero):
    try:
        number = parse_fraction(value, "eps", zero=zero)
    except ValueError:
        with pytest.raises(ValueError, match=r"^eps "):
            parse_fraction(value, "eps", zero=zero)
    else:
        assert 0 <= number <= 1
        assert zero or number > 0


# ---- counts and numbers ----------------------------------------------------------------------


def test_counts_are_whole_numbers_of_at_least_the_least():
    assert check_count(1, "steps") == 1
    assert check_count(0, "seed", least=0) == 0
    for value in (0, -3):
        with pytest.raises(ValueError, match=rf"^steps .*\b1\b.* {value}\b"):
            check_count(value, "steps")
    for value in (1.0, "1", True, None):
        with pytest.raises(TypeError, match=f"^steps .*{value!r}"):
            check_count(value, "steps")


def test_numbers_are_finite_and_within_their_limits():
    assert check_number(1e-5, "lr", above=0) == 1e-5
    assert check_number(0, "momentum", low=0) == 0
    assert check_number(1, "crop_min", above=0, high=1) == 1
    for value in (0, 0.0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^lr .*(\b0\b|finite).* {value}"):
            check_number(value, "lr", above=0)
    with pytest.raises(ValueError, match=r"^momentum .*\b0\b.* -0\.1\b"):
        check_number(-0.1, "momentum", low=0)
    for value in (0, 1.5):
        with pytest.raises(ValueError, match=rf"^crop_min .*\b0\b.*\b1\b.* {value}"):
            check_number(value, "crop_min", above=0, high=1)
    for value in ("0.1", None, True):
        with pytest.raises(TypeError, match=r"^lr .*number"):
            check_number(value, "lr", above=0)


# ---- check_images ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_in_range_pass(dtype):
    check_images(torch.rand(2, 3, 4, 5).to(dtype))
    check_images(torch.tensor([0.0, 1.0, 0.5]).to(dtype).view(1, 3, 1, 1))
    check_images(torch.empty(0, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (8,), (1, 2, 3, 4, 5)])
def test_images_of_another_shape_are_refused(shape):
    given = re.escape(str(list(shape)))
    with pytest.raises(ValueError, match=rf"^images .*\[B, 3, H, W\].* {given}"):
        check_images(torch.zeros(shape), channels=3)
    if len(shape) == 4:
        check_images(torch.zeros(shape))
        return
    with pytest.raises(ValueError, match=rf"^images .*\[B, C, H, W\].* {given}"):
        check_images(torch.zeros(shape))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (torch.uint8, "255"),
        (torch.float16, r"\.float\(\)"),
        (torch.bfloat16, r"\.float\(\)"),
        (torch.int64, r"\.float\(\)"),
    ],
)
def test_images_of_another_dtype_are_refused_with_a_remedy(dtype, remedy):
    with pytest.raises(TypeError, match=f"^x .*float32.* {dtype}.*{remedy}"):
        check_images(torch.zeros(1, 3, 2, 2, dtype=dtype), "x")


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 255.0, math.nan, math.inf])
def test_one_pixel_out_of_range_is_seen(wrong):
    images = torch.full((2, 3, 4, 4), 0.5)
    images[1, 2, 3, 0] = wrong
    with pytest.raises(ValueError, match=r"^images .*\b0\b.*\b1\b"):
        check_images(images)
    check_images(images, values=False)


def test_images_must_be_a_tensor():
    with pytest.raises(TypeError, match=r"^images .*tensor.* list"):
        check_images([[0.0]])


# ---- check_labels ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32],
)
def test_labels_of_any_integer_type_pass(dtype):
    assert check_labels(torch.tensor([0, 4, 2]).to(dtype), 3, 5) == 4


def test_no_labels_have_no_largest():
    assert check_labels(torch.empty(0, dtype=torch.int64), 0, 5) == -1


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_there_is_one_label_for_each_image(shape):
    with pytest.raises(ValueError, match=r"^labels .*\[3\]"):
        check_labels(torch.zeros(shape, dtype=torch.int64), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_labels_are_integers(dtype):
    with pytest.raises(TypeError, match=f"^labels .*{dtype}"):
        check_labels(torch.zeros(3, dtype=dtype), 3)


def test_labels_must_be_a_tensor():
    with pytest.raises(TypeError, match=r"^y .*tensor.* list"):
        check_labels([0, 1], 2, name="y")


@settings(deadline=None)
@given(st.lists(st.integers(-3, 12), min_size=1, max_size=8), st.integers(1, 10))
def test_labels_are_in_range_or_refused(values, classes):
    labels = torch.tensor(values)
    if min(values) < 0:
        with pytest.raises(ValueError, match=rf"^labels .*\b0\b.* {min(values)}\b"):
            check_labels(labels, len(values), classes)
    elif max(values) >= classes:
        wanted = rf"\b0\b.*\b{classes - 1}\b.* {max(values)}\b"
        with pytest.raises(ValueError, match=f"^labels .*{wanted}"):
            check_labels(labels, len(values), classes)
    else:
        assert check_labels(labels, len(values), classes) == max(values)


# ---- check_classnames ------------------------------------------------------------------------


def test_class_names_come_back_as_a_list():
    assert check_classnames(("cat", "dog")) == ["cat", "dog"]
    assert check_classnames(name for name in ("cat", "Cat")) == ["cat", "Cat"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("cat", TypeError, "string 'cat'"),
        (None, TypeError, "list.* None"),
        (80, TypeError, "list.* 80"),
        ([], ValueError, "empty"),
        (["cat", 3], TypeError, "strings.* 3"),
        (["cat", ""], ValueError, "blank"),
        (["cat", " \t"], ValueError, "blank"),
        (["a", "b", "a"], ValueError, "'a'"),
    ],
)
def test_bad_class_names_are_refused(names, error, message):
    with pytest.raises(error, match=f"^classnames .*{message}"):
        check_classnames(names)


# ---- names that are not known ----------------------------------------------------------------


def test_an_unknown_name_comes_with_the_nearest_ones():
    error = unknown("data set", "shpes", ["patterns", "shapes", "counts"])
    assert isinstance(error, ValueError)
    assert str(error) == "unknown data set 'shpes': did you mean 'shapes'?"


def test_the_nearest_come_first_and_are_three_at_most():
    hint = nearest("pgd-2", ["pgd-20", "pgd-200", "pgd-2000", "pgd-20000", "clean"])
    assert hint == "did you mean 'pgd-20' or 'pgd-200' or 'pgd-2000'?"


def test_without_a_near_name_all_are_listed_if_they_are_few():
    assert nearest("xyz", ["tune", "doctor"]) == "known: doctor, tune"
    assert nearest("xyz", [f"model{i:02}" for i in range(20)]).startswith("known: model00, ")
    assert nearest("xyz", [f"model{i:02}" for i in range(21)]) == "21 names are known"


@settings(deadline=None)
@given(st.lists(st.text("abcdef", min_size=4), min_size=1, max_size=3, unique=True), st.data())
def test_a_known_name_with_one_letter_more_is_found(names, data):
    name = data.draw(st.sampled_from(names))
    assert repr(name) in nearest(name + "z", names)


def test_sizes_of_images():
    assert check_image_size((48, 48)) == check_image_size(48) == 48
    assert check_image_size([48, 64]) == (48, 64)
    for wrong in (10**6, 15, (48, 10**6), (48,), "48", True):
        with pytest.raises((ValueError, TypeError), match=r"^image_size must be"):
            check_image_size(wrong)
