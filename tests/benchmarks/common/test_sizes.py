"""A size or a number of rounds that there is not is named."""

import importlib

import pytest

from benchmarks.common import sizes


@pytest.mark.parametrize("name", ["FASTPROMPT_BENCH", "FASTPROMPT_BENCH_ROUNDS"])
def test_a_wrong_size_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "huge")
    with pytest.raises(ValueError, match=f"^{name} .*'huge'"):
        importlib.reload(sizes)
    monkeypatch.undo()
    importlib.reload(sizes)
