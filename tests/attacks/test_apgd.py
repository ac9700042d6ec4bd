"""APGD: a slow spelling of the paper's algorithm, its losses, torchattacks, AutoAttack."""

import math

import pytest
import torch
from helpers.attack_toys import Curved, Linear, close_calls, fooled

from fastprompt import NAPTuner, load_data
from fastprompt.attacks import APGD, FAB, PGD, AutoAttack, Square
from fastprompt.attacks import losses as ours
from fastprompt.attacks.apgd import checkpoints
from fastprompt.attacks.random_start import random_start

# ---- losses ---------------------------------------------------------------------------------


def slow_losses(z, y, t):
    """Each formula spelled out for one image, in Python numbers."""
    z = z.tolist()
    order = sorted(z, reverse=True)
    other = max(v for c, v in enumerate(z) if c != y)
    peak = max(z)
    return {
        "cross_entropy": math.log(sum(math.exp(v - peak) for v in z)) + peak - z[y],
        "margin": other - z[y],
        "dlr": -(z[y] - other) / (order[0] - order[2] + 1e-12),
        "targeted_margin": z[t] - z[y],
        "targeted_dlr": -(z[y] - z[t]) / (order[0] - (order[2] + order[3]) / 2 + 1e-12),
    }


def test_losses_are_their_formulas():
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(20, 6, generator=gen, dtype=torch.float64)
    y, t = (torch.randint(6, (20,), generator=gen) for _ in range(2))
    slow = [slow_losses(*args) for args in zip(z, y.tolist(), t.tolist(), strict=True)]
    for name in ("cross_entropy", "margin", "dlr"):
        wanted = torch.tensor([s[name] for s in slow], dtype=torch.float64)
        torch.testing.assert_close(getattr(ours, name)(z, y), wanted, rtol=1e-10, atol=1e-12)
    for name in ("targeted_margin", "targeted_dlr"):
        wanted = torch.tensor([s[name] for s in slow], dtype=torch.float64)
        torch.testing.assert_close(getattr(ours, name)(z, y, t), wanted, rtol=1e-10, atol=1e-12)


def test_dlr_sees_neither_shift_nor_scale():
    z = torch.randn(5, 7, dtype=torch.float64)
    y = torch.arange(5)
    torch.testing.assert_close(ours.dlr(1000 * z + 3, y), ours.dlr(z, y), rtol=1e-9, atol=0)


# ---- the algorithm --------------------------------------------------------------------------


def test_checkpoints_are_the_papers():
    # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), at steps of 100
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    wanted = [math.ceil(round(100 * v, 6)) for v in p[1:] if v <= 1]
    assert [at for at, period in enumerate(checkpoints(100)) if period] == wanted


def slow_apgd(model, x, y, start, eps, steps, loss):
    """Algorithm 1 of the paper for one image, with its own bookkeeping: the points in order."""

    def value(point):
        point = point[None].requires_grad_(True)
        out = loss(model(point), y[None]).sum()
        (grad,) = torch.autograd.grad(out, point)
        return float(out.detach()), grad[0]

    def project(point):
        return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)

    points, values = [start], []
    best, best_value, best_grad = start, -math.inf, None
    eta, last_eta_halved, best_at_check, period = 2 * eps, True, -math.inf, checkpoints(steps)
    before = start
    for k in range(steps):
        point = points[-1]
        f, grad = value(point)
        values.append(f)
        if f > best_value:
            best, best_value, best_grad = point, f, grad
        if period[k]:
            rises = sum(values[j] > values[j - 1] for j in range(k - period[k] + 1, k + 1))
            halve = rises <= 0.75 * period[k]
            halve |= not last_eta_halved and best_at_check >= best_value
            last_eta_halved, best_at_check = halve, best_value
            if halve:
                eta, point, grad = eta / 2, best, best_grad
        z = project(point + eta * grad.sign())
        if k:
            z = project(point + 0.75 * (z - point) + 0.25 * (point - before))
        before = point
        points.append(z)
    return points


@pytest.mark.parametrize("name", ["ce", "dlr", "margin"])
def test_every_iterate_is_the_papers(name):
    model, x, y = close_calls(4, kind=Curved)
    eps, steps = 0.05, 40
    seen = []

    def watched(images):
        if images.requires_grad:
            seen.append(images.detach().clone())
        return model(images)

    APGD(watched, eps, steps, loss=name, stop=False).run(x, y)
    loss = {"ce": ours.cross_entropy, "dlr": ours.dlr, "margin": ours.margin}[name]
    start = random_start(x, eps, torch.arange(4), seed=0, restart=0, sides="two-sided")
    for i in range(4):
        points = slow_apgd(model, x[i], y[i], start[i], eps, steps, loss)
        for step in range(steps):
            torch.testing.assert_close(seen[step][i], points[step], rtol=0, atol=1e-12)


def test_steps_are_halved_and_the_best_point_is_handed_back():
    model, x, y = close_calls(6, kind=Curved)
    values = []

    def watched(images):
        logits = model(images)
        if images.requires_grad:
            values.append(ours.cross_entropy(logits, y).detach())
        return logits

    result = APGD(watched, 0.05, 60, stop=False).run(x, y)
    best = torch.stack(values).amax(0)
    torch.testing.assert_close(ours.cross_entropy(model(result.images), y), best)
    assert torch.equal(result.success, fooled(model, result.images, y))
    assert (values[-1] > values[0]).all()


def test_targets_are_the_likeliest_wrong_classes():
    model, x, y = close_calls(8)
    order = model(x).argsort(dim=1, descending=True)
    attack = APGD(model, 0.03, 5, loss="targeted-dlr", targets=3)
    from fastprompt.attacks.apgd import _APGDAscent
    from fastprompt.attacks.base import Batch

    ascent = _APGDAscent(attack, Batch(x, y, torch.arange(8)))
    rows = torch.arange(8)
    for attempt in range(3):
        assert torch.equal(ascent.begin(rows, attempt)["targets"], order[:, attempt + 1])
    few = APGD(Linear(classes=3, dtype=torch.float64), 0.03, 5, loss="targeted-dlr")
    y3 = few.model(x).argmax(1)
    result = few.run(x, y3)  # the margin in its place, two targets
    assert result.fell_at.max() < 2 * 6


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({"loss": "targeted-margin", "targets": 4}, None),
        ({"loss": "targeted-margin", "targets": 4}, 3),
        ({"loss": "ce", "restarts": 3}, 7),
    ],
)
def test_without_stopping_the_best_attempt_counts(options, slots):
    # the last target is the least likely class: its result alone would seem robust
    model, x, y = close_calls(40)
    options = {"eps": 0.012, "steps": 10, **options}
    stopped = APGD(model, **options).run(x, y)
    whole = APGD(model, stop=False, batch=slots, **options).run(x, y)
    assert torch.equal(whole.success, fooled(model, whole.images, y))
    assert 5 < int(stopped.success.sum()) < 35
    assert torch.equal(whole.success, stopped.success)


def test_stopping_changes_no_verdict():
    model, x, y = close_calls(20, kind=Curved)
    for loss in ("ce", "targeted-dlr"):
        stopped = APGD(model, 0.02, 15, loss=loss, batch=6).run(x, y)
        assert torch.equal(stopped.success, fooled(model, stopped.images, y))
        whole = APGD(model, 0.02, 15, loss=loss, stop=False).run(x, y)
        assert (stopped.success | ~whole.success).all()
        assert ((stopped.images - x).abs() <= 0.02 + 1e-12).all()


# ---- beside torchattacks --------------------------------------------------------------------


@pytest.fixture(scope="module", params=["zero-shot", "nap"])
def clip_case(request, bundled_clip):
    data = load_data("patterns", shots=1)
    model = bundled_clip.zero_shot(data.classnames, data.templates)
    if request.param == "nap":
        train = load_data("patterns", shots=8).train
        tuner = NAPTuner(bundled_clip, data.classnames, eps="1/255", steps=1, epochs=3, batch=20)
        model = tuner.fit(train, progress=False).classifier
    x, y = data.test.images[:60].float() / 255, data.test.labels[:60]
    right = ~fooled(model, x, y)
    return model, x[right], y[right]


@pytest.mark.peers
def test_pgd_is_torchattacks_bit_for_bit(torchattacks, clip_case):
    model, x, y = clip_case
    options = {"eps": 2 / 255, "alpha": 0.5 / 255, "steps": 5, "random_start": False}
    x, y = x[:16], y[:16]
    theirs = torchattacks.PGD(model, **options)(x, y)
    assert torch.equal(PGD(model, **options)(x, y), theirs)
    assert not torch.equal(theirs, x)


@pytest.mark.peers
@pytest.mark.parametrize("loss", ["ce", "targeted-dlr"])
def test_as_strong_as_torchattacks_at_equal_budget(torchattacks, clip_case, loss):
    model, x, y = clip_case
    x, y = x[:25], y[:25]
    assert len(x) == 25
    options = {"eps": 1 / 255, "steps": 10}
    if loss == "ce":
        peers = [torchattacks.APGD(model, loss="ce", seed=s, **options) for s in range(3)]
    else:
        peers = [torchattacks.APGDT(model, n_classes=3, seed=s, **options) for s in range(3)]
    theirs = [int((~fooled(model, peer(x, y), y)).sum()) for peer in peers]
    mine = [
        int((~APGD(model, loss=loss, targets=2, seed=s, **options).run(x, y).success).sum())
        for s in range(3)
    ]
    assert min(mine) <= max(theirs)
    assert max(mine) <= max(theirs) + 1


# ---- the ensemble ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [FAB, Square], ids=["fab", "square"])
def test_fab_and_square_leave_the_caller_alone(make):
    model, x, y = close_calls(12)
    model, x = model.float(), x.float()
    state = torch.get_rng_state()
    eps = {FAB: 0.02, Square: 0.06}[make]
    result = make(model, eps, 30, batch=5).run(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert ((result.images - x).abs() <= eps + 1e-7).all()
    assert torch.equal(result.success, fooled(model, result.images, y))
    assert result.success.any()
    assert not result.success.all()
    assert model.weight.grad is None
    assert model.weight.requires_grad
    again = make(model, eps, 30, batch=5).run(x, y)
    assert torch.equal(result.images, again.images)


def test_autoattack_is_its_parts_on_what_is_left(monkeypatch):
    model, x, y = close_calls(16, kind=Curved)
    model, x = model.float(), x.float()
    y = model(x).argmax(1)
    attack = AutoAttack(model, 0.008, seed=3)
    settings = {name: vars(part) for name, part in attack.attacks.items()}
    assert list(settings) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [settings[k]["steps"] for k in ("apgd-ce", "apgd-t", "fab-t")] == [100, 100, 100]
    assert settings["apgd-t"]["targets"] == settings["fab-t"]["targets"] == 9
    assert settings["square"]["queries"] == 5000
    attack.attacks["fab-t"].steps, attack.attacks["square"].queries = 5, 50  # for the time
    given = {}
    for name, part in attack.attacks.items():
        real = part.run

        def spy(images, labels, *, indices, name=name, real=real):
            given[name] = (indices, real(images, labels, indices=indices))
            return given[name][1]

        monkeypatch.setattr(part, "run", spy)
    result = attack.run(x, y)
    left = torch.arange(16)
    for indices, part in given.values():
        assert torch.equal(indices, left)
        left = left[~part.success]
    assert torch.equal(torch.where(~result.success)[0], left)
    assert torch.equal(result.success, fooled(model, result.images, y))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "mse"}, "^loss .*'mse'"),
        ({"steps": 0}, "^steps .*1.*0"),
        ({"targets": 0}, "^targets .*1.*0"),
        ({"eps": 8}, "^eps .*8/255"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        APGD(Linear(), **options)
