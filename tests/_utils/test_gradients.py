"""Modules without gradients for a while."""

import pytest
import torch
from torch import nn

from fastprompt._utils.gradients import without_gradients


def test_what_was_found_is_put_back():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    module[1].bias.requires_grad_(False)
    before = [p.requires_grad for p in module.parameters()]
    with without_gradients(module):
        assert not any(p.requires_grad for p in module.parameters())
        assert not module(torch.ones(1, 3)).requires_grad
    assert [p.requires_grad for p in module.parameters()] == before
    with pytest.raises(KeyError), without_gradients(module):
        raise KeyError
    assert [p.requires_grad for p in module.parameters()] == before == [True, True, True, False]


def test_what_is_no_module_is_let_through():
    with without_gradients(torch.square):
        pass
