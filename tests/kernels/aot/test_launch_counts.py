"""Number of kernels that an op starts, counted on tensors without memory."""

import os

import pytest
import torch
from helpers.compiled_kernels import DTYPES, launches, module_of

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("launchers differ under the interpreter", allow_module_level=True)


def names(case: str, dtype: torch.dtype) -> list[str]:
    return [launch.name for launch in launches(module_of("layer_consistency").cases(dtype)[case])]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_twelve_equal_layers_take_two_launches_forward_and_one_backward(dtype):
    forward = ["_row_sums_kernel", "_row_distance_kernel"]
    assert names("layer_consistency-list", dtype) == forward
    assert names("layer_consistency-stack", dtype) == forward
    assert names("layer_consistency-gradients", dtype) == ["_row_gradient_kernel"]
