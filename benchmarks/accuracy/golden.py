"""Errors of the library against the outputs of the authors' code, in float64.

python -m benchmarks.accuracy golden measure   # runs tests/golden, a few minutes
python -m benchmarks.accuracy golden table
"""

from __future__ import annotations

import json
import subprocess
import sys

from ..common.paths import ROOT, TWO_CORES
from ..common.report import markdown

RESULT = TWO_CORES / "golden.json"
MAPT = "jiamingzhang94/MAPT at d26abda"
STEP = "logits, features, layer outputs, attack, loss and gradients"
# golden file: what is compared, the original
ROWS = {
    "nap-depth4": (f"NAP, prompts in all layers: {STEP}", MAPT),
    "nap-depth2": ("NAP, prompts in half of the layers: the same", MAPT),
    "apt": ("APT, generic context: logits, attack, loss and gradient", "TreeLLi/APT"),
    "apt-class-specific": ("APT, class-specific contexts: the same", "TreeLLi/APT"),
    "advpt": (
        "AdvPT, both phases: attack, embeddings, logits, loss and gradient",
        "jiamingzhang94/Adversarial-Prompt-Tuning",
    ),
    "learning_rates": ("learning rate of each epoch", "Dassl's scheduler"),
    "maple-fixed-words": (
        'import of MaPLe\'s prompts with the fixed words "of a": logits',
        "MaPLe in the newest jiamingzhang94/MAPT",
    ),
    "fap": ("import of FAP's prompts of the image side and fixed words: logits", "lionel-w2/FAP"),
    "fap-advmaple": ("import of FAP's AdvMaPLe: logits", "lionel-w2/FAP"),
}


def measure() -> None:
    """Run the tests in ``tests/golden`` and write each file's largest error; print the table."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/golden"]
    subprocess.run([*command, "--golden-json", str(RESULT)], cwd=ROOT, check=True)
    show()


def lines() -> list[list[str]]:
    """Return the table: what is compared, the original, the largest norm-relative error."""
    errors = json.loads(RESULT.read_text("utf-8"))["errors"]
    head = ["compared", "original", "file", "largest error"]
    rows = [
        [what, origin, f"`{file}`", f"{errors[file]:.0e}"] for file, (what, origin) in ROWS.items()
    ]
    return [head, *rows]


def show() -> None:
    """Print the file's table."""
    head, *rows = lines()
    print(markdown(head, rows))
