"""Devices that models can run on."""

import pytest
import torch

from fastprompt import load_clip
from fastprompt._utils.devices import usable_device


def test_the_cpu_is_accepted_by_name_and_as_a_device():
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["meta", "xla", "tpu", "", "cuda:x", torch.device("meta")])
def test_other_devices_are_refused_by_name(device):
    with pytest.raises(ValueError, match=r"^device must be .*cpu"):
        usable_device(device)


def test_a_gpu_that_is_not_there(small_clip):
    with pytest.raises(ValueError, match=r"^where: 'cuda:99'"):
        usable_device("cuda:99", "where")
    with pytest.raises(ValueError, match=r"^device .*meta"):
        load_clip(small_clip, device="meta")
    assert small_clip.device == torch.device("cpu")
