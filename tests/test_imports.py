"""What importing the package costs, and that it is as if all had been imported."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import python

import fastprompt

SLOW = ("torch", "torchvision", "open_clip", "transformers", "matplotlib", "jsonargparse", "ray")


@pytest.mark.parametrize(
    "code",
    [
        "import fastprompt.cli.main",
        "import fastprompt.cli.main; assert fastprompt.cli.main.main(['--help']) == 0",
        "import fastprompt.cli.main; assert fastprompt.cli.main.main(['tun']) == 2",
    ],
)
def test_the_usage_does_not_wait_for_the_libraries(code):
    show = f"; import sys; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_public_name_is_there():
    assert set(fastprompt.__all__) <= set(dir(fastprompt))
    for name in fastprompt.__all__:
        assert getattr(fastprompt, name).__name__ == name


def test_a_new_process_imports_names_and_modules_and_touches_no_driver():
    code = (
        "import torch; torch.cuda.init = torch.cuda._lazy_init = lambda *a: 1 / 0\n"
        "import fastprompt; print(fastprompt.attacks.PGD is fastprompt.PGD)\n"
        "import fastprompt.cli.main, fastprompt.kernels\n"
        "from fastprompt import *; print(NAPTuner.method, load_clip.__name__)"
    )
    assert python(code).splitlines() == ["True", "nap load_clip"]


def test_what_is_imported_is_what_type_checkers_see():
    tree = ast.parse(Path(fastprompt.__file__).read_text("utf-8"))
    checked = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert checked == fastprompt._HOME
    assert set(checked) == set(fastprompt.__all__)


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="'NAPTunr'"):
        fastprompt.NAPTunr  # noqa: B018
    with pytest.raises(ImportError, match="NAPTunr"):
        from fastprompt import NAPTunr  # noqa: F401
    assert not hasattr(fastprompt, "_none")


def test_a_pickle_is_read_where_nothing_was_imported(tmp_path):
    path = tmp_path / "defense.pkl"
    path.write_bytes(pickle.dumps(fastprompt.JPEG(75)))
    code = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb')))"
    assert python(code) == str(fastprompt.JPEG(75))
