"""Square: a slow spelling of the paper's algorithm, schedule, queries, random numbers."""

import math

import pytest
import torch
from helpers.attack_toys import Curved, Linear, close_calls, fooled

from fastprompt.attacks import Square
from fastprompt.attacks.square import _SquareRun, sides
from fastprompt.evaluation.scoring import Counted
from fastprompt.kernels.random_start.reference import philox

# ---- the algorithm --------------------------------------------------------------------------


def share(proposal):
    """The share of the pixels in a square, table in the paper's supplement for 10,000 queries."""
    for halvings, last in enumerate((10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)):
        if proposal <= last:
            return 0.8 / 2**halvings
    return 0.8 / 2**9


def slow_square(model, x, y, eps, queries, index, seed):
    """Algorithms 1 and 2 for one image: the best point after each query, and whether it is new."""
    channels, height, width = x.shape

    def margin(point):
        z = model(point[None])[0].tolist()
        return max(v for c, v in enumerate(z) if c != y) - z[y]

    best = x.clone()
    for column in range(width):
        word = philox((column, 2**31, index, 0), seed)[2]
        for c in range(channels):
            best[c, :, column] += eps if word >> c & 1 else -eps
    best = best.clamp(0, 1)
    value, points = margin(best), [best]
    for query in range(1, queries):
        if value > 0:
            break
        side = round(math.sqrt(share(query - 1) * height * width))
        side = min(max(side, 1), height, width)
        words = philox((query, 2**31 + 1, index, 0), seed)
        top = words[0] * (height - side + 1) // 2**32
        left = words[1] * (width - side + 1) // 2**32
        new = best.clone()
        for c in range(channels):
            delta = 2 * eps if words[2] >> c & 1 else -2 * eps
            new[c, top : top + side, left : left + side] += delta
        new = torch.minimum(torch.maximum(new, x - eps), x + eps).clamp(0, 1)
        if (found := margin(new)) > value:
            best, value = new, found
        points.append(best)
    return points


@pytest.mark.parametrize("ahead", [1, 4])
def test_every_point_is_the_papers(monkeypatch, ahead):
    model, x, y = close_calls(4, kind=Curved)
    eps, queries, seed = 0.004, 60, 2**32 - 5
    indices = torch.tensor([0, 7, 2**20, 3])
    monkeypatch.setattr(_SquareRun, "ahead", lambda run: ahead)
    seen, real = [{} for _ in range(4)], _SquareRun.step

    def step(run):
        real(run)
        for slot, row in enumerate(run.rows):
            seen[row][run.done[slot] - 1] = run.state["adv"][slot].clone()

    monkeypatch.setattr(_SquareRun, "step", step)
    result = Square(model, eps, queries, seed=seed).run(x, y, indices=indices)
    distinct = 0
    for i in range(4):
        points = slow_square(model, x[i], int(y[i]), eps, queries, int(indices[i]), seed)
        assert max(seen[i]) == len(points) - 1
        assert len(seen[i]) == len(points) or ahead > 1
        for query, point in seen[i].items():
            torch.testing.assert_close(point, points[query], rtol=0, atol=1e-12)
        torch.testing.assert_close(result.images[i], points[-1], rtol=0, atol=1e-12)
        assert int(result.fell_at[i]) == (len(points) - 1 if result.success[i] else -1)
        distinct += len({p.numpy().tobytes() for p in points})
    assert 0 < result.success.sum() < 4
    assert distinct > 20


def test_the_squares_shrink_as_in_the_code_of_autoattack():
    for queries, height, width in ((10_000, 32, 32), (5000, 224, 224), (700, 20, 60)):
        found = sides(queries, height, width)
        assert found[0] == 0
        wanted = [
            min(max(1, round(math.sqrt(share(i) * height * width))), height, width)
            for i in range(queries - 1)
        ]
        assert found[1:] == wanted
    assert sides(1, 8, 8) == [0]
    assert {20} == set(sides(700, 20, 60)[1:2])  # no larger than the image


# ---- queries --------------------------------------------------------------------------------


def test_queries_take_no_gradient_and_no_more_than_there_are():
    model, x, y = close_calls(6)
    counted = Counted(model).eval()

    def watched(images):
        assert not torch.is_grad_enabled()
        return counted(images)

    once = Square(watched, 0.01, 1).run(x, y)
    assert counted.forwards == 6 + once.success.sum()
    assert torch.allclose((once.images - x).abs(), torch.tensor(0.01, dtype=torch.float64))
    counted.forwards = 0
    result = Square(watched, 0.01, 50, batch=6).run(x, y)
    queries = torch.where(result.success, result.fell_at + 1, 50).sum()
    # up to four more are evaluated ahead for the last images
    assert 0.5 * queries < counted.forwards < 1.5 * queries
    assert result.health.total == 0
    assert result.trusted


def test_a_proposal_that_changes_nothing_costs_no_pass():
    model, x, y = close_calls(3)
    counted = Counted(model).eval()
    result = Square(counted, 0, 80).run(x, y)
    assert counted.forwards == 3
    assert torch.equal(result.images, x)


def test_few_images_are_evaluated_several_queries_ahead():
    model, x, y = close_calls(1)
    passes, images = [], []

    def watched(batch):
        passes.append(len(batch))
        return model(batch)

    for size in (1, None):
        passes.clear()
        images.append(Square(watched, 0.003, 300, batch=size).run(x, y).images)
        assert max(passes) == 1 if size else len(passes) < 200
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-12)


def test_the_result_is_the_point_of_largest_margin():
    model, x, y = close_calls(8)
    result = Square(model, 0.05, 40).run(x, y)
    assert torch.equal(result.success, fooled(model, result.images, y))
    assert 0 < result.success.sum() < 8
    z, stripes = (model(Square(model, 0.05, n).run(x, y).images) for n in (40, 1))
    own = [logits.gather(1, y[:, None])[:, 0] for logits in (z, stripes)]
    other = [logits.scatter(1, y[:, None], -torch.inf).amax(1) for logits in (z, stripes)]
    assert (other[0] - own[0] >= other[1] - own[1]).all()


# ---- random numbers -------------------------------------------------------------------------


def test_splits_and_slots_change_nothing_and_seeds_do():
    model, x, y = close_calls(9)
    indices = torch.arange(9) + 2**35
    state = torch.get_rng_state()
    whole = Square(model, 0.05, 60).run(x, y, indices=indices)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < whole.success.sum() < 9
    for rows, size in ((slice(0, 9), 2), (slice(3, 8), None), ([8, 1], 1)):
        part = Square(model, 0.05, 60, batch=size).run(x[rows], y[rows], indices=indices[rows])
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-12)
        assert torch.equal(part.fell_at, whole.fell_at[rows])
    assert torch.equal(Square(model, 0.05, 60).run(x, y, indices=indices).images, whole.images)
    other = Square(model, 0.05, 60, seed=1).run(x, y, indices=indices)
    assert not torch.equal(other.fell_at, whole.fell_at)


def test_squares_are_uniform_and_differ_between_images():
    from fastprompt.attacks.base import Batch

    x = torch.full((50, 2, 9, 13), 0.5)
    attack = Square(Linear(), 0.1, 8500)
    state = _SquareRun(attack, Batch(x, torch.zeros(50).long(), torch.arange(50))).search.begin(
        torch.arange(50), 0
    )
    late = state["corners"][:, 8001:].flatten(0, 1)  # squares of a pixel
    for axis, places in enumerate((9, 13)):
        counts = torch.bincount(late[:, axis], minlength=places)
        assert len(counts) == places
        assert ((counts / len(late) - 1 / places).abs() < 0.01).all()
    bits = torch.stack([state["colors"] >> c & 1 for c in range(2)]).float()
    assert ((bits.mean(dim=(1, 2)) - 0.5).abs() < 0.01).all()
    assert abs(float(torch.corrcoef(bits.flatten(1))[0, 1])) < 0.05
    assert len({tuple(row.flatten().tolist()) for row in state["corners"][:, :100]}) == 50
    assert 0.45 < float((state["adv"] > 0.5).float().mean()) < 0.55
    assert torch.equal(state["adv"][:, :, :1].expand_as(x), state["adv"])  # vertical stripes


@pytest.mark.peers
def test_as_strong_as_torchattacks_at_equal_budget(torchattacks):
    model, x, y = close_calls(100, kind=Curved)
    model, x = model.float(), x.float()
    y = model(x).argmax(1)
    ours = theirs = 0
    for seed in range(3):
        peer = torchattacks.Square(
            model, norm="Linf", eps=0.003, n_queries=60, seed=seed, resc_schedule=False
        )
        ours += int((~Square(model, 0.003, 60, seed=seed).run(x, y).success).sum())
        theirs += int((~fooled(model, peer(x, y), y)).sum())
    assert 150 < ours <= theirs + 3


@pytest.mark.parametrize(
    ("options", "match"), [({"queries": 0}, "^queries .*0"), ({"eps": 8}, "^eps .*8/255")]
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        Square(Linear(), **options)
