"""The lists of mutations fit the kernels as they are; `mutate.py` applies them."""

import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
OPS = sorted(p.parent.name for p in KERNELS.glob("*/op.py"))


@pytest.mark.parametrize("op", OPS)
def test_each_mutation_finds_its_text_once(op):
    listed = tomllib.loads((HERE / "mutations" / f"{op}.toml").read_text())["mutation"]
    assert len(listed) >= 6
    assert len({m["name"] for m in listed}) == len(listed)
    for mutation in listed:
        source = (KERNELS / mutation["file"]).read_text()
        assert source.count(mutation["old"]) == 1, mutation["name"]
        assert mutation["new"] != mutation["old"]


@pytest.mark.parametrize("op", OPS)
def test_each_kernel_has_a_mutation(op):
    listed = tomllib.loads((HERE / "mutations" / f"{op}.toml").read_text())["mutation"]
    files = {path.name for path in (KERNELS / op).glob("*.py") if "@triton.jit" in path.read_text()}
    assert files <= {Path(m["file"]).name for m in listed}
