"""On a GPU the ladder's groups tell the card and its memory."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.common.paths import ROOT

CHOSEN = ["pgd_step", "random_start", "nap/c10-", "advpt-bank", "phase-2/c10-", "coop-loop/b8"]


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_on_a_gpu_a_group_tells_its_card_and_memory(chosen, tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-only", "-k", chosen]
    done = subprocess.run(
        [*command, "--benchmark-json", str(path)],
        cwd=ROOT,
        env={**os.environ, "FASTPROMPT_BENCH": "small"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    rungs = [e["extra_info"] for e in json.loads(path.read_text())["benchmarks"]]
    assert rungs
    for about in rungs:
        assert about["card"] == torch.cuda.get_device_name()
        assert about["peak_bytes"] > 0
        assert about["clocks_after"]
        assert 0 < about["ratio_range"][0] <= about["ratio_range"][1]
