"""APGD's and MI-FGSM's steps against slow spellings, `torchattacks`, and what they refuse."""

import pytest
import torch
import torchattacks
from test_pgd_step import batch, given_anew, slow_step

from fastprompt.kernels import apgd_step, momentum_step


def points(dtype=torch.float32, seed=0):
    """The last two points, the clean images, a gradient."""
    x_adv, x, grad = batch(dtype=dtype, seed=seed)
    x_prev, _, _ = batch(dtype=dtype, seed=seed)
    gen = torch.Generator().manual_seed(seed + 1)
    x_prev = x + 0.1 * (torch.rand(x.shape, generator=gen, dtype=dtype) - 0.5)
    return x_adv, x_prev.clamp(0, 1), x, grad


@pytest.mark.parametrize("momentum", [0.75, 1.0, 0.0])
def test_apgd_equals_the_slow_spelling(momentum):
    x_adv, x_prev, x, grad = points(torch.float64)
    z = slow_step(x_adv, x, grad, 0.03, 0.04)
    moved = x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev)
    slow = slow_step(moved, x, torch.zeros_like(x), 0.0, 0.04)
    got = apgd_step(x_adv, x_prev, x, grad, alpha=0.03, eps=0.04, momentum=momentum)
    torch.testing.assert_close(got, slow, rtol=0, atol=1e-15)


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


def test_momentum_equals_the_slow_spelling():
    x_adv, x, grad = batch(dtype=torch.float64)
    velocity = torch.randn_like(x)
    got, got_velocity = momentum_step(x_adv, x, grad, velocity, alpha=0.03, eps=0.04, decay=0.7)
    for row in range(3):
        mean = sum(abs(g) for g in grad[row].flatten().tolist()) / 75
        slow_velocity = 0.7 * velocity[row] + grad[row] / mean
        torch.testing.assert_close(got_velocity[row], slow_velocity, rtol=1e-13, atol=1e-13)
        slow = slow_step(x_adv[row], x[row], slow_velocity, 0.03, 0.04)
        torch.testing.assert_close(got[row], slow, rtol=0, atol=1e-15)


def test_momentum_walks_as_torchattacks_does(small_clip, images):
    model = small_clip.zero_shot(["cat", "dog", "bird"])
    x, y = images.double(), torch.tensor([0, 1, 2, 0])
    model = model.double()
    try:
        theirs = torchattacks.MIFGSM(model, eps=0.05, alpha=0.02, steps=4, decay=0.8)(x, y)
        mine, velocity = x, torch.zeros_like(x)
        for _ in range(4):
            at = mine.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(at), y)
            (grad,) = torch.autograd.grad(loss, at)
            mine, velocity = momentum_step(mine, x, grad, velocity, alpha=0.02, eps=0.05, decay=0.8)
    finally:
        model.float()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_does_not_stay_in_the_momentum(bad):
    x_adv, x, grad = batch()
    velocity, counts = torch.zeros_like(x), torch.zeros(3, 2, dtype=torch.int64)
    grad[0, 0, 0, 0] = bad
    grad[1] = 0.0
    grad[2] = bad
    named = {"alpha": 0.02, "eps": 0.04, "counts": counts}
    got, next_velocity = momentum_step(x_adv, x, grad, velocity, **named)
    assert next_velocity.isfinite().all()
    assert got.isfinite().all()
    assert next_velocity[0, 0, 0, 0] == 0
    assert next_velocity[0].count_nonzero() == 74
    assert not next_velocity[1:].any()
    assert counts.tolist() == [[0, 1], [75, 0], [0, 75]]


def test_a_large_gradient_does_not_stall_the_momentum():
    x = torch.full((2, 3, 40, 40), 0.5)
    grad = torch.full_like(x, 1e36)
    grad[1] = 1e-30
    got, velocity = momentum_step(x, x, grad, torch.zeros_like(x), alpha=0.02, eps=0.04)
    torch.testing.assert_close(velocity, torch.ones_like(x), rtol=1e-5, atol=0)
    assert torch.equal(got, x + 0.02)


@pytest.mark.parametrize("step", ["apgd", "momentum"])
def test_settings_for_each_image_targets_and_counts(step):
    x_adv, other, x, grad = points()
    alphas, radii = torch.tensor([0.0, 0.01, 0.2]), torch.tensor([0.02, 0.0, 0.07])

    def run(rows, **named):
        a, o, c, g = (t[rows] for t in (x_adv, other, x, grad))
        if step == "apgd":
            return apgd_step(a, o, c, g, **named)
        return momentum_step(a, c, g, o, **named)[0]

    everyone, counts = slice(None), torch.zeros(3, 2, dtype=torch.int64)
    grad[1, 0, 0, 0] = 0.0
    got = run(everyone, alpha=alphas, eps=radii, counts=counts)
    assert counts.tolist() == [[0, 0], [1, 0], [0, 0]]
    for row in range(3):
        numbers = {"alpha": float(alphas[row]), "eps": float(radii[row])}
        assert torch.equal(got[row : row + 1], run(slice(row, row + 1), **numbers))
    assert not torch.equal(got, run(everyone, alpha=alphas, eps=radii, targeted=True))


CALLS = {
    "apgd_step": lambda x, f: (x[0], x[1], x[2], x[3], None, None, 0.1, 0.2, 0.75, 0.0, 1.0, f),
    "momentum_step": lambda x, f: (x[0], x[2], x[3], x[1], None, None, 0.1, 0.2, 1.0, 0.0, 1.0, f),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(name, layout):
    images = [t.contiguous(memory_format=layout) for t in points()]
    for flag, counts in ((False, None), (True, torch.zeros(3, 2, dtype=torch.int64))):
        arguments = tuple(given_anew((*CALLS[name](images, flag), counts)))
        torch.library.opcheck(getattr(torch.ops.fastprompt, name).default, arguments)


@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_graph_breaks(name):
    def step(x_adv, other, x, grad, counts):
        named = {"alpha": 0.02, "eps": 0.04, "counts": counts}
        if name == "apgd_step":
            return apgd_step(x_adv, other, x, grad, **named)
        return momentum_step(x_adv, x, grad, other, **named)[1]

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (slice(0, 3), slice(1, 3)):
        images = [t[rows] for t in points()]
        counts = torch.zeros(len(images[0]), 2, dtype=torch.int64)
        assert torch.equal(compiled(*images, counts), step(*images, counts.clone()))
    assert step(*(t.to("meta") for t in images), None).is_meta


def test_what_they_refuse():
    x_adv, other, x, grad = points()
    named = {"alpha": 0.1, "eps": 0.1}
    with pytest.raises(ValueError, match=r"momentum must be between 0 and 1, got 1\.5"):
        apgd_step(x_adv, other, x, grad, momentum=1.5, **named)
    with pytest.raises(ValueError, match="decay must be at least 0"):
        momentum_step(x_adv, x, grad, other, decay=-1.0, **named)
    with pytest.raises(TypeError, match="velocity must have x_adv's dtype"):
        momentum_step(x_adv, x, grad, other.half(), **named)
    with pytest.raises(ValueError, match="x_prev must have x_adv's shape"):
        apgd_step(x_adv, other[:2], x, grad, **named)
    with pytest.raises(TypeError, match="x_prev must be a tensor, got NoneType"):
        apgd_step(x_adv, None, x, grad, **named)
    with pytest.raises(TypeError, match="velocity must be a tensor, got list"):
        momentum_step(x_adv, x, grad, [other], **named)
    with pytest.raises(ValueError, match="alpha must be finite, got inf"):
        apgd_step(x_adv, other, x, grad, eps=0.1, alpha=float("inf"))
    with pytest.raises(RuntimeError, match="can't run"):
        apgd_step(x_adv, other, x, grad, impl="triton", **named)
    with pytest.raises(RuntimeError, match="can't run"):
        momentum_step(x_adv, x, grad, other, impl="triton", **named)


@pytest.mark.parametrize("bad", [None, "0.5", float("nan"), float("inf"), torch.ones(())])
def test_momentum_and_decay_are_finite_numbers(bad):
    x_adv, other, x, grad = points()
    error = ValueError if isinstance(bad, float) else TypeError
    with pytest.raises(error, match="momentum must be"):
        apgd_step(x_adv, other, x, grad, alpha=0.1, eps=0.1, momentum=bad)
    with pytest.raises(error, match="decay must be"):
        momentum_step(x_adv, x, grad, other, alpha=0.1, eps=0.1, decay=bad)
