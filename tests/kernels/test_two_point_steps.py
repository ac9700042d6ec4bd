"""APGD's step against its formula, its settings, and what it refuses."""

import pytest
import torch
from helpers.steps import batch, given_anew

from fastprompt.kernels import apgd_step
from fastprompt.kernels.pgd_step import reference


def points(dtype=torch.float32, seed=0):
    """The last two points, the clean images, a gradient."""
    x_adv, x, grad = batch(dtype=dtype, seed=seed)
    x_prev, _, _ = batch(dtype=dtype, seed=seed)
    gen = torch.Generator().manual_seed(seed + 1)
    x_prev = x + 0.1 * (torch.rand(x.shape, generator=gen, dtype=dtype) - 0.5)
    return x_adv, x_prev.clamp(0, 1), x, grad


@pytest.mark.parametrize("momentum", [0.75, 1.0, 0.0])
def test_equals_the_formula(momentum):
    x_adv, x_prev, x, grad = points(torch.float64)
    expected = reference.apgd_step(x_adv, x_prev, x, grad, 0.03, 0.04, momentum)
    got = apgd_step(x_adv, x_prev, x, grad, alpha=0.03, eps=0.04, momentum=momentum)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


def test_apgd_equals_the_published_code_on_its_way():
    """A few steps as Croce and Hein's repository has them: min and max around ``x +- eps``."""
    x_adv, x_prev, x, _ = points(torch.float64)
    eps, sizes = 0.04, torch.tensor([0.08, 0.04, 0.02], dtype=torch.float64)
    mine, mine_before = x_adv, x_prev
    theirs, before = x_adv, x_prev
    for step in range(4):
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(step)).double()
        mine, mine_before = apgd_step(mine, mine_before, x, grad, alpha=sizes, eps=eps), mine
        difference, before = theirs - before, theirs
        z = theirs + sizes.view(-1, 1, 1, 1) * grad.sign()
        z = torch.clamp(torch.min(torch.max(z, x - eps), x + eps), 0.0, 1.0)
        moved = theirs + (z - theirs) * 0.75 + difference * 0.25
        theirs = torch.clamp(torch.min(torch.max(moved, x - eps), x + eps), 0.0, 1.0)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_settings_for_each_image_targets_and_counts():
    x_adv, x_prev, x, grad = points()
    alphas, radii = torch.tensor([0.0, 0.01, 0.2]), torch.tensor([0.02, 0.0, 0.07])

    def run(rows, **named):
        return apgd_step(*(t[rows] for t in (x_adv, x_prev, x, grad)), **named)

    everyone, counts = slice(None), torch.zeros(3, 2, dtype=torch.int64)
    grad[1, 0, 0, 0] = 0.0
    got = run(everyone, alpha=alphas, eps=radii, counts=counts)
    assert counts.tolist() == [[0, 0], [1, 0], [0, 0]]
    for row in range(3):
        numbers = {"alpha": float(alphas[row]), "eps": float(radii[row])}
        assert torch.equal(got[row : row + 1], run(slice(row, row + 1), **numbers))
    assert not torch.equal(got, run(everyone, alpha=alphas, eps=radii, targeted=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(memory_format):
    images = [t.contiguous(memory_format=memory_format) for t in points()]
    for flag, counts in ((False, None), (True, torch.zeros(3, 2, dtype=torch.int64))):
        arguments = (*images, None, None, 0.1, 0.2, 0.75, 0.0, 1.0, flag, counts)
        operator = torch.ops.fastprompt.apgd_step.default
        torch.library.opcheck(operator, tuple(given_anew(arguments)))


def test_compiles_without_graph_breaks():
    def step(*images, counts=None):
        return apgd_step(*images, alpha=0.02, eps=0.04, counts=counts)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (slice(0, 3), slice(1, 3)):
        images = [t[rows] for t in points()]
        counts, expected_counts = torch.zeros(2, len(images[0]), 2, dtype=torch.int64)
        expected = step(*images, counts=expected_counts)
        assert torch.equal(compiled(*images, counts=counts), expected)
        assert torch.equal(counts, expected_counts)
    assert step(*(t.to("meta") for t in images)).is_meta


def test_what_it_refuses():
    x_adv, x_prev, x, grad = points()
    named = {"alpha": 0.1, "eps": 0.1}
    with pytest.raises(ValueError, match=r"^momentum .*0.*1.*1\.5"):
        apgd_step(x_adv, x_prev, x, grad, momentum=1.5, **named)
    with pytest.raises(TypeError, match=r"^x_prev .*x_adv.*dtype"):
        apgd_step(x_adv, x_prev.half(), x, grad, **named)
    with pytest.raises(ValueError, match=r"^x_prev .*x_adv.*shape"):
        apgd_step(x_adv, x_prev[:2], x, grad, **named)
    with pytest.raises(TypeError, match=r"^x_prev .*tensor.*NoneType"):
        apgd_step(x_adv, None, x, grad, **named)
    with pytest.raises(ValueError, match=r"^alpha .* inf"):
        apgd_step(x_adv, x_prev, x, grad, eps=0.1, alpha=float("inf"))
    with pytest.raises(RuntimeError, match=r"^impl.*'triton'"):
        apgd_step(x_adv, x_prev, x, grad, impl="triton", **named)


@pytest.mark.parametrize("bad", [None, "0.5", float("nan"), float("inf"), torch.ones(())])
def test_momentum_is_a_finite_number(bad):
    x_adv, x_prev, x, grad = points()
    error = ValueError if isinstance(bad, float) else TypeError
    with pytest.raises(error, match=r"^momentum .*(NoneType|'0\.5'|nan|inf|tensor)"):
        apgd_step(x_adv, x_prev, x, grad, alpha=0.1, eps=0.1, momentum=bad)
