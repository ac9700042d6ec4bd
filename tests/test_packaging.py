"""The package is found from everywhere, whole."""

import stat
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import fastprompt

ROOT = Path(__file__).parents[1]
SHOW = "import fastprompt.kernels as k; from fastprompt.kernels import pgd_step; print(k.__file__)"


def python(*arguments, cwd, **env):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_kernels_are_found_from_another_folder(tmp_path):
    assert python("-c", SHOW, cwd=tmp_path).endswith("kernels/__init__.py")


def test_kernels_are_found_in_the_checkout_without_an_install():
    path = python("-c", SHOW, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert Path(path).resolve() == ROOT / "kernels" / "__init__.py"


def test_the_version_is_the_installed_one():
    assert fastprompt.__version__ == version("fastprompt")


@pytest.mark.slow
def test_wheel_holds_kernels_and_models(tmp_path):
    python(
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(tmp_path), str(ROOT)),
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 60e6
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        assert not any(stat.S_ISLNK(entry.external_attr >> 16) for entry in file.infolist())
        file.extractall(unpacked)
    for kernel in (ROOT / "kernels").rglob("*.py"):
        assert f"fastprompt/kernels/{kernel.relative_to(ROOT / 'kernels')}" in names
    for asset in (ROOT / "fastprompt" / "assets").iterdir():
        if asset.suffix in (".json", ".safetensors", ".txt", ".zip"):
            assert f"fastprompt/assets/{asset.name}" in names
    assert {"fastprompt/assets/photos.zip", "fastprompt/assets/photos.LICENSE.txt"} <= names
    assert "fastprompt/py.typed" in names
    for module in (ROOT / "fastprompt").rglob("*.py"):
        name = module.relative_to(ROOT).as_posix()
        assert name.startswith("fastprompt/kernels/") or name in names  # that is a link
    apart = ("tests/", "benchmarks/", "pretraining/", "kernels/")
    assert not any(n.startswith(apart) for n in names)
    path = python("-c", SHOW, cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert path == str(unpacked / "fastprompt/kernels/__init__.py")
