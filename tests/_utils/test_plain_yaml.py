"""Numbers in settings files and options: plain decimals only."""

import pytest
import yaml

from fastprompt._utils.plain_yaml import check_plain, load_yaml


def test_plain_numbers_are_read():
    text = "[1, -2, +3, 0, 0.5, .5, 5., 1e-3, 1E3, -1.5e+2, .inf, true, null, a, '0x10']"
    values = [1, -2, 3, 0, 0.5, 0.5, 5.0, 1e-3, 1e3, -150.0, float("inf"), True, None, "a", "0x10"]
    assert load_yaml(text) == values
    assert [type(value) for value in load_yaml(text)] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text", ["0x10", "0b1", "0o7", "010", "1_0", "1_0.5", "1:30", "2020-01-01"]
)
def test_other_notations_stay_texts(text):
    assert load_yaml(text) == text


@pytest.mark.parametrize("text", ["a: &a 1\nb: *a", "[" * 1000, "[" * 21 + "]" * 21, "9" * 5000])
def test_aliases_deep_nesting_and_endless_numbers_are_refused(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_options_are_checked_by_their_types():
    for value in ("0x10", "1_0", "[1, 0x10]", "010", "1:30"):
        for kind in (int, float, int | None, list[int] | int):
            with pytest.raises(ValueError, match=r"^--epochs .*decimal"):
                check_plain(value, "--epochs", kind)
        for kind in (str, str | None):
            check_plain(value, "--template", kind)
    for value in ("10", "-1", "1e-3", "0", "0.5", "null", "4/255", "1/255,2/255", "all", 16, None):
        check_plain(value, "--epochs", int | float | str | None)
