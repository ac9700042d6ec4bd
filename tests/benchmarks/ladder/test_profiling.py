"""The profile tells a step's parts and kinds of operation."""

import pytest
import torch
from helpers.models import small_model

from benchmarks.common.tuner_steps import NAMES, random_images, tuner_steps
from benchmarks.ladder import profiling
from fastprompt import load_clip


@pytest.fixture(scope="module")
def step():
    clip = load_clip(small_model())
    data = random_images(2, 48, len(NAMES))
    return tuner_steps(("fastprompt",), "nap", clip, NAMES, data, n_ctx=4)["fastprompt"]


def gradients(step):
    return {
        n: p.grad.clone() for n, p in step.tuner.prompts.named_parameters() if p.grad is not None
    }


def test_the_parts_are_the_whole_step(step):
    step()
    whole = gradients(step)
    found = profiling.parts(step)
    assert tuple(found) == profiling.PARTS
    assert min(found.values()) > 0
    again = gradients(step)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_kinds_are_shares_of_the_whole(step):
    found = profiling.kinds(step)
    assert sum(found.values()) == pytest.approx(1)
    # which one is larger depends on the machine for so small a model
    assert min(found["matrix products"], found["GELU"]) > 0


def test_an_operator_is_of_the_kind_that_its_name_says():
    kinds = {
        "aten::addmm": "matrix products",
        "aten::mm": "matrix products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>": "attention",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": "attention",
        "sm90_xmma_gemm_bf16bf16_bf16f32": "matrix products",
        "aten::gelu_backward": "GELU",
        "aten::native_layer_norm_backward": "LayerNorm",
        "aten::cat": "copies and joins",
        "aten::exp": profiling.OTHER,
    }
    assert {name: profiling.kind_of(name) for name in kinds} == kinds
    found = profiling.shares([("aten::mm", 3.0), ("aten::exp", 1.0)])
    assert found["matrix products"] == 0.75
    assert found[profiling.OTHER] == 0.25


def test_the_table_has_shares_of_the_sum():
    result = {"seconds": {"attack": 3.0, "backward": 1.0}, "shares": {"GELU": 0.02}}
    assert "| attack | 3.00 | 75 % |" in profiling.table(result)
    assert "| GELU | 2 % |" in profiling.table(result)
