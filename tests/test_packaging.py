"""The package is found from everywhere, whole."""

import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

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


BUILD = (
    "import sys; from setuptools import build_meta as backend\n"
    "_, folder, *kinds = sys.argv\n"
    "for kind in kinds: getattr(backend, f'build_{kind}')(folder)"
)


def built(folder, source, *kinds):
    """The wheel or source distribution of a checkout."""
    folder.mkdir()
    python("-c", BUILD, str(folder), *kinds, cwd=source)
    return [next(folder.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])) for kind in kinds]


def checkout(folder):
    """The files of this one as git leaves them on Windows: a link is a text file of its target."""
    skipped = shutil.ignore_patterns("__pycache__", "kernels", "*.egg-info")
    shutil.copytree(ROOT / "fastprompt", folder / "fastprompt", ignore=skipped)
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=skipped)
    (folder / "fastprompt" / "kernels").write_bytes(b"../kernels")
    (folder / "tests").mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "tests" / "test_packaging.py", folder / "tests")
    return folder


def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {e.filename: e.CRC for e in file.infolist() if not e.filename.endswith("RECORD")}


@pytest.mark.slow
def test_windows_and_the_source_distribution_give_the_same_wheel(tmp_path):
    plain = checkout(tmp_path / "linux")
    (plain / "fastprompt" / "kernels").unlink()
    (plain / "fastprompt" / "kernels").symlink_to("../kernels")
    wanted, sdist = built(tmp_path / "a", plain, "wheel", "sdist")
    (from_windows,) = built(tmp_path / "b", checkout(tmp_path / "windows"), "wheel")
    with tarfile.open(sdist) as file:
        members = file.getmembers()
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
        file.extractall(tmp_path / "unpacked", **safely)
    assert all(member.isfile() or member.isdir() for member in members), "a link"
    assert {Path(member.name).parts[1] for member in members[1:]} <= {
        *("fastprompt", "kernels", "fastprompt.egg-info", "PKG-INFO", "LICENSE", "README.md"),
        *("pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in"),
    }
    (source,) = (tmp_path / "unpacked").iterdir()
    (from_source,) = built(tmp_path / "c", source, "wheel")
    assert wanted.name == f"fastprompt-{fastprompt.__version__}-py3-none-any.whl"
    assert "fastprompt/kernels/pgd_step/kernel.py" in contents(wanted)
    assert contents(wanted) == contents(from_windows) == contents(from_source)


def extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["dependencies"], project["optional-dependencies"]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_heavy_test_packages_stand_in_an_extra_of_their_own():
    """Whose versions are those of the extra `test`, where both name a package."""
    needed, extra = extras()
    light = {name_of(r): r for r in (*needed, *extra["test"])}
    heavy = [name_of(r) for r in extra["test-use"]]
    assert len({*heavy}) == len(heavy)
    assert {"gradio", "playwright"} <= {*heavy}
    assert not {*heavy} & {*light}
    assert not {"gradio", "playwright"} & {name_of(r) for r in extra["dev"]}


def test_the_heavy_extra_is_resolved_alone_and_its_tests_are_run():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    (resolved,) = [line for line in script.splitlines() if "--dry-run" in line]
    assert resolved.endswith('".[test-use]"')
    assert "--ignore-installed" in resolved
    _, installed = script.split('pip install -e ".[test-use]"')
    assert "tests/test_extras.py" in installed
    _, extra = extras()
    features = {"parquet", "ray", "datasets"}  # what their extras bring is in this one, too
    assert {name_of(r) for e in features for r in extra[e]} <= {*map(name_of, extra["test-use"])}


def test_a_cpu_build_of_torch_needs_no_triton():
    needed, extra = extras()
    assert "triton" not in map(name_of, needed)
    (of_tests,) = [r for r in extra["test"] if name_of(r) == "triton"]
    assert of_tests.endswith("platform_system == 'Linux'")


def floors(requirements):
    """The oldest versions: name -> "major.minor"."""
    found = (re.match(r"([\w.-]+)>=(\d+\.\d+)(?:;|$)", r) for r in requirements)
    return {match[1]: match[2] for match in found if match}


def test_the_floor_that_is_declared_is_the_one_that_is_tested():
    """By `make test-floor`, and by a job of the workflow that calls it."""
    needed, extra = extras()
    declared = floors(needed)
    recipe = (ROOT / "Makefile").read_text("utf-8")
    for name in ("torch", "torchvision"):
        assert f'"{name}=={declared[name]}.*"' in recipe
    # releases of the same day
    torch, vision = (int(declared[name].split(".")[1]) for name in ("torch", "torchvision"))
    assert vision - torch == 15
    brings = {"2.11": "3.6"}  # the Triton that a torch for Linux requires
    assert floors(extra["test"])["triton"] == brings[declared["torch"]]
    assert f"needs torch {declared['torch']} or later" in (
        ROOT / "benchmarks" / "README.md"
    ).read_text("utf-8")
    (python,) = re.findall(r"FLOOR_PYTHON \?= python(.*)", recipe)
    job = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))["jobs"]["floor"]
    (set_up,) = [s["with"] for s in job["steps"] if "setup-python" in s.get("uses", "")]
    assert set_up["python-version"] == python
    assert job["steps"][-1]["run"] == f"make test-floor FLOOR_PYTHON=python{python}"


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_says_that_it_has_not_run_and_pins_its_actions(path):
    text = path.read_text("utf-8")
    assert "has not been run yet" in text.split("name:")[0]
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            assert "uses" not in step or re.search(r"@v\d+\.\d+\.\d+$", step["uses"])


def test_the_matrix_has_every_system_and_every_python_that_is_declared():
    matrix = yaml.safe_load(WORKFLOWS[0].read_text("utf-8"))["jobs"]["matrix"]["strategy"]["matrix"]
    assert [name.split("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [c.split()[-1] for c in project["classifiers"] if "Python :: 3." in c]
    assert matrix["python"] == declared


def test_only_the_job_that_publishes_may_sign_in():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert "permissions" not in jobs["build"]
    assert not any("run" in step for step in jobs["publish"]["steps"])
    assert "secrets." not in str(jobs)
