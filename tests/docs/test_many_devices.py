"""The page docs/guides/many_devices.md: what it starts is understood, its numbers are computed."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from benchmarks.gpu.budget import PUBLISHED
from fastprompt.cli.evaluate import evaluate_parser

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "many_devices.md").read_text("utf-8")
TORCHRUN = re.findall(r"torchrun +(-.*)", PAGE.replace("\\\n", " "))


def test_bytes_of_the_class_features() -> None:
    size = 4 * PUBLISHED.classes * PUBLISHED.features
    assert f"{size / 1e6:.2f} MB for 1,000 classes" in " ".join(PAGE.split())


@pytest.mark.parametrize("line", TORCHRUN, ids=range(len(TORCHRUN)))
def test_torchrun_understands_its_options(line: str) -> None:
    given = get_args_parser().parse_args(shlex.split(line))
    assert given.module
    assert given.training_script == "fastprompt"
    assert given.training_script_args[0] == "tune"


def test_there_are_lines_for_one_and_for_many_nodes() -> None:
    assert len(TORCHRUN) == 3
    assert sum("--rdzv-endpoint" in line for line in TORCHRUN) == 1


def test_the_ray_job() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    job = yaml.safe_load(block)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("fastprompt", "evaluate")
    assert evaluate_parser().parse_args(words).ray == "auto"
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert all(pod["volumes"] == pods[0]["volumes"] for pod in pods)
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"].endswith(f":{cluster['rayVersion']}")
        (mount,) = container["volumeMounts"]
        assert words[0].startswith(mount["mountPath"] + "/")
        assert mount["name"] == pod["volumes"][0]["name"]
