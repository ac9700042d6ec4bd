"""PGD: equal to torchattacks, inside ball and box, honest about models without gradients."""

import inspect

import pytest
import torch
from helpers.attack_toys import Linear, batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastprompt import PGD

# ---- torchattacks ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_shot(bundled_clip):
    return bundled_clip.zero_shot(["red circle", "blue star", "green moon", "pink heart"])


def peer_images(model, images, labels, targeted=False, **options):
    import torchattacks

    attack = torchattacks.PGD(model, random_start=False, **options)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(images, labels)


@pytest.mark.peers
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("n", "reduction"), [(4, "sum"), (8, "sum"), (3, "mean"), (7, "mean")])
def test_images_equal_torchattacks_bit_for_bit(zero_shot, n, reduction, targeted):
    images, labels = batch(n, size=48, classes=4)
    options = {"eps": 4 / 255, "alpha": 1 / 255, "steps": 10}
    ours = PGD(
        zero_shot, random_start=False, reduction=reduction, targeted=targeted, **options
    ).run(images, labels)
    peer = peer_images(zero_shot, images, labels, targeted, **options)
    assert torch.equal(ours.images, peer)
    assert not torch.equal(ours.images, images)


@pytest.mark.peers
def test_call_and_constructor_are_those_of_torchattacks(torchattacks):
    ours = list(inspect.signature(PGD.__init__).parameters.values())
    peers = list(inspect.signature(torchattacks.PGD.__init__).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(peers)]] == [(p.name, p.default) for p in peers]


# ---- what the attack does -------------------------------------------------------------------


def test_reaches_the_optimum_of_a_linear_two_class_model():
    model = Linear(classes=2, dtype=torch.float64)
    x, y = batch(dtype=torch.float64, classes=2)
    x = 0.3 + 0.4 * x  # away from the box
    adv = PGD(model, eps=0.1, alpha=0.03, steps=20, random_start=False)(x, y)
    direction = (model.weight[1 - y] - model.weight[y]).sign().view_as(x)
    torch.testing.assert_close(adv, x + 0.1 * direction, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0, 1),
    alpha=st.floats(1e-4, 1),
    steps=st.integers(1, 4),
    start=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_never_leaves_ball_or_box(eps, alpha, steps, start, seed):
    x, y = batch(seed=seed)
    adv = PGD(Linear(), eps=eps, alpha=alpha, steps=steps, random_start=start, seed=seed)(x, y)
    assert adv.dtype == torch.float32
    assert (adv - x).abs().max() <= eps + 1e-7
    assert adv.min() >= 0
    assert adv.max() <= 1


def test_splitting_a_batch_changes_no_image():
    x, y = batch(7, dtype=torch.float64)
    attack = PGD(Linear(dtype=torch.float64), eps=0.05, alpha=0.02, steps=3, restarts=2, seed=3)
    indices = torch.arange(100, 107)
    whole = attack(x, y, indices=indices)
    parts = [attack(x[i], y[i], indices=indices[i]) for i in (slice(0, 2), slice(2, 7))]
    assert torch.equal(whole, torch.cat(parts))


def test_random_start_depends_on_seed_and_image_index():
    x, y = batch(2)
    x[1], y[1] = x[0], y[0]

    def images(seed, indices):
        attack = PGD(Linear(), eps=0.1, alpha=1e-6, steps=1, seed=seed)
        return attack(x, y, indices=torch.tensor(indices))

    first = images(0, [5, 6])
    assert torch.equal(first, images(0, [5, 6]))
    assert torch.equal(first[0], images(0, [9, 5])[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, images(1, [5, 6]))


def test_success_flags_and_targets():
    model = Linear(dtype=torch.float64)
    x, _ = batch(6, dtype=torch.float64)
    y = model(x).argmax(1)
    result = PGD(model, eps=0.5, alpha=0.2, steps=5).run(x, y)
    assert torch.equal(result.success, model(result.images).argmax(1) != y)
    assert result.success.all()
    target = (y + 1) % 5
    result = PGD(model, eps=0.5, alpha=0.2, steps=10, targeted=True).run(x, target)
    assert torch.equal(result.success, model(result.images).argmax(1) == target)
    assert result.success.any()


def test_zero_eps_leaves_the_images():
    x, y = batch()
    assert torch.equal(PGD(Linear(), eps=0)(x, y), x)


def test_more_restarts_never_find_less_and_keep_what_they_found():
    class Sine(nn.Module):  # many local maxima, so that the start matters
        def forward(self, x):
            s = (40 * x.flatten(1)[:, :40]).sin().sum(1)
            return torch.stack([-s + 65, s], 1)

    x, _ = batch(64)
    y = torch.zeros(64, dtype=torch.int64)
    one, many = (
        PGD(Sine(), eps=0.2, alpha=0.01, steps=4, restarts=r).run(x, y).success for r in (1, 6)
    )
    assert (many | ~one).all()
    assert many.sum() > one.sum()
    found = PGD(Sine(), eps=0.2, alpha=0.01, steps=4, restarts=6).run(x, y)
    assert torch.equal(Sine()(found.images).argmax(1) != y, found.success)


def test_custom_loss_is_followed():
    model = Linear(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    x = 0.3 + 0.4 * x

    def first_logit(logits, labels):
        return logits[:, 0]

    adv = PGD(model, eps=0.1, alpha=0.1, steps=1, random_start=False, loss=first_logit)(x, y)
    expected = x + 0.1 * model.weight[0].sign().view(3, 8, 8)
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-12)


def test_low_precision_logits_keep_a_float32_loss():
    class Half(Linear):
        def forward(self, x):
            return (super().forward(x)).bfloat16()

    seen = []

    def loss(logits, labels):
        seen.append(logits.dtype)
        return logits[:, 0]

    x, y = batch()
    adv = PGD(Half(), eps=0.1, alpha=0.05, steps=1, loss=loss)(x, y)
    assert seen == [torch.float32]
    assert adv.dtype == torch.float32


def test_a_callable_that_is_no_module_and_an_empty_batch():
    weight = Linear().weight.detach()
    x, y = batch()
    assert PGD(lambda v: v.flatten(1) @ weight.T)(x, y).shape == x.shape
    assert PGD(Linear())(x[:0], y[:0]).shape == (0, 3, 8, 8)


# ---- the model is left alone ----------------------------------------------------------------


def test_model_and_inputs_are_left_as_they_were():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.drop = nn.Dropout(0.5)
            self.head = Linear()

        def forward(self, x):
            return self.head(self.drop(self.norm(x)))

    model = Noisy().train()
    model.drop.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = batch()
    kept = x.clone()
    PGD(model, steps=2)(x, y)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert model.training
    assert model.norm.training
    assert not model.drop.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_under_no_grad_and_inference_mode(mode):
    x, y = batch()
    attack = PGD(Linear(), steps=2)
    expected = attack(x, y)
    with mode():
        assert torch.equal(attack(x.clone(), y.clone()), expected)


# ---- gradient health ------------------------------------------------------------------------


def nan_gradient(x):
    # sqrt has an infinite slope at 0, and 0 * inf is NaN
    return Linear()(x) + 0 * (x * 0).sqrt().sum(dim=(1, 2, 3))[:, None]


def zero_gradient(x):
    return Linear()((x * 4).round() / 4)


def detached(x):
    return Linear()(x).detach()


@pytest.mark.parametrize("model", [nan_gradient, zero_gradient, detached])
def test_a_model_without_gradients_is_reported(model):
    x, y = batch()
    attack = PGD(model, eps=1e-3, alpha=1e-3, steps=3)
    result = attack.run(x, y)
    assert not result.trusted
    assert result.health.stalled.all()
    assert "4 of 4 images" in result.health.reasons[0]
    with pytest.warns(UserWarning, match="4 of 4 images"):
        attack(x, y)


def test_a_good_model_is_trusted(recwarn):
    x, y = batch()
    result = PGD(Linear(), steps=3).run(x, y)
    assert result.trusted
    assert result.health.zero_share == 0
    PGD(Linear(), steps=3)(x, y)
    assert not recwarn.list


def test_one_stalled_image_is_found_among_many():
    def model(x):
        keep = torch.ones(len(x), 1, 1, 1)
        keep[2] = 0
        return Linear()(x * keep)

    x, y = batch(8)
    health = PGD(model, steps=2).run(x, y).health
    assert health.stalled.tolist() == [False, False, True] + [False] * 5
    assert not health.trusted


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"eps": -0.1}, ValueError, "^eps .*-0.1"),
        ({"eps": 8}, ValueError, "^eps .*8/255"),
        ({"alpha": 0}, ValueError, "^alpha .*0.*0"),
        ({"alpha": 2}, ValueError, "^alpha .*2/255"),
        ({"eps": "8/0"}, ValueError, "^eps .*8/0"),
        ({"eps": None}, TypeError, "^eps .*None"),
        ({"steps": 0}, ValueError, "^steps .*1.*0"),
        ({"restarts": 0}, ValueError, "^restarts .*1.*0"),
        ({"restarts": 2, "random_start": False}, ValueError, "^restarts .*random_start=True"),
        ({"reduction": "max"}, ValueError, "^reduction .*'max'"),
        ({"loss": "ce"}, TypeError, "^loss .*'ce'"),
    ],
)
def test_bad_settings(options, error, match):
    with pytest.raises(error, match=match):
        PGD(Linear(), **options)


def test_eps_as_a_string():
    assert PGD(Linear(), eps="8/255", alpha="2/255").eps == 8 / 255


def test_bad_images_and_labels():
    attack = PGD(Linear())
    x, y = batch()
    cases = [
        (x * 2, y, ValueError, r"^images .*\[0, 1\]"),
        (x - 1, y, ValueError, r"^images .*\[0, 1\]"),
        (x * float("nan"), y, ValueError, r"^images .*\[0, 1\]"),
        ((x * 255).byte(), y, TypeError, "^images .*255"),
        (x.half(), y, TypeError, "^images .*float32.*float16"),
        (x[0], y, ValueError, r"^images .*\[B, C, H, W\]"),
        (x, y[:2], ValueError, r"^labels .*\[4\].*\[2\]"),
        (x, y.float(), TypeError, "^labels .*torch.float32"),
        (x, y - 9, ValueError, r"^labels .* 0\b.*-[0-9]"),
        (x, y + 5, ValueError, r"^labels .*0\.\.4"),
    ]
    for images, labels, error, match in cases:
        with pytest.raises(error, match=match):
            attack(images, labels)
    with pytest.raises(ValueError, match=r"^indices .*\[4\].*\[3\]"):
        attack(x, y, indices=torch.arange(3))
    with pytest.raises(ValueError, match=r"^model .*\[4, C\]"):
        PGD(lambda v: v)(x, y)
    with pytest.raises(TypeError, match=r"^model .*callable.*str"):
        PGD("resnet")
