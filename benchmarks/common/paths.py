"""Where results are: the folders of the checkout, and this machine's among them."""

import os
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TWO_CORES = RESULTS / "cpu-2-cores"


def card() -> str:
    """The GPU's name, as a folder name."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def results() -> Path:
    """Where this machine's results are, or would be: by its card's name, or its cores."""
    return RESULTS / (card() if torch.cuda.is_available() else f"cpu-{os.cpu_count()}-cores")
