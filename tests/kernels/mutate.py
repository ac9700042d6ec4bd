"""Do the tests see a wrong kernel? Each listed mutation, applied to a copy, must fail one.

    python tests/kernels/mutate.py              # all: each takes 5 to 40 seconds
    python tests/kernels/mutate.py pgd_step     # one list
    python tests/kernels/mutate.py pgd_step -k mask

The lists are ``mutations/<op>.toml``: for each mutation its name, the file under ``kernels/``, the
text that stands there once, and what replaces it. The tests of ``launch/test_launch_<op>.py`` run
under Triton's interpreter; a crash and a test that does not end count as seen.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def copy_of_the_code(folder: Path) -> None:
    """What a test run needs; the models are linked, not copied."""
    for name in ("kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "fastprompt").mkdir()
    for path in (ROOT / "fastprompt").iterdir():
        if path.name not in ("kernels", "__pycache__"):
            (folder / "fastprompt" / path.name).symlink_to(path)
    (folder / "fastprompt" / "kernels").symlink_to("../kernels")


def run(folder: Path, op: str, seconds: int) -> str:
    """``passed``, ``failed``, ``crashed`` or ``no end``."""
    test = f"tests/kernels/launch/test_launch_{op}.py"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--confcutdir={Path(test).parent}", test]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode < 0:  # a signal: a write past the end, say
        return "crashed"
    if done.returncode not in (0, 1):  # neither passed nor failed: a broken command proves nothing
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return "failed" if done.returncode else "passed"


def mutate(op: str, chosen: str, seconds: int) -> list[str]:
    """Names of the mutations that no test saw."""
    mutations = tomllib.loads((HERE / "mutations" / f"{op}.toml").read_text())["mutation"]
    unseen = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_of_the_code(folder)
        if run(folder, op, seconds) != "passed":
            raise SystemExit(f"{op}: the tests fail without any mutation")
        for mutation in mutations:
            if chosen not in mutation["name"]:
                continue
            path = folder / "kernels" / mutation["file"]
            right = path.read_text()
            if right.count(mutation["old"]) != 1:
                raise SystemExit(f"{op}: {mutation['name']!r}: the text must stand there once")
            path.write_text(right.replace(mutation["old"], mutation["new"]))
            outcome = run(folder, op, seconds)
            path.write_text(right)
            print(
                f"{op:<18}{'NOT SEEN' if outcome == 'passed' else outcome:<10}{mutation['name']}",
                flush=True,
            )
            unseen += [mutation["name"]] if outcome == "passed" else []
    return unseen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ops", nargs="*", help="lists to go through; all of them by default")
    parser.add_argument("-k", default="", help="only mutations whose name holds this")
    parser.add_argument("--seconds", type=int, default=280, help="limit of one test run")
    given = parser.parse_args()
    known = sorted(p.stem for p in (HERE / "mutations").glob("*.toml"))
    unseen = [n for op in given.ops or known for n in mutate(op, given.k, given.seconds)]
    print(f"{len(unseen)} not seen" if unseen else "each mutation was seen by a test")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
