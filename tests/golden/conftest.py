"""``pytest tests/golden --golden-json FILE`` writes the largest error of each golden file."""

from pathlib import Path

import pytest
from helpers.golden import ERRORS

from fastprompt._utils.files import write_json
from fastprompt._utils.versions import versions


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-json", type=Path, help="file for the largest error of each file")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption("--golden-json", None)
    if path is not None and exitstatus == 0:
        errors = dict(sorted(ERRORS.items()))
        write_json(path, {"dtype": "float64", "errors": errors, "versions": versions()})
