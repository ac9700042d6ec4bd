"""Steps of the formula's kind: the text tower shares the prefix."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def shared_prefix() -> Iterator[None]:
    """So few classes would be computed whole on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastprompt.towers.text.few_whole", lambda *sizes: False)
        yield
