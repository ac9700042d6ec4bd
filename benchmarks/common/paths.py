"""Paths of the result folders, including this machine's."""

import os
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TWO_CORES = RESULTS / "cpu-2-cores"


def card() -> str:
    """Return the GPU's name as a folder name."""
    return folder_name(torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu")


def folder_name(name: str) -> str:
    """Return a card's name with hyphens only."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def results() -> Path:
    """Return this machine's result folder, named after its GPU or its number of CPU cores."""
    return RESULTS / (card() if torch.cuda.is_available() else f"cpu-{os.cpu_count()}-cores")
