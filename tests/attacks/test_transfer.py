"""TPGD, MI-, DI- and TI-FGSM: a slow spelling of each algorithm in float64, and torchattacks."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.attack_toys import Curved, Linear, batch, close_calls

from fastprompt import evaluate
from fastprompt.attacks import DIFGSM, MIFGSM, PGD, TIFGSM, TPGD, transfer
from fastprompt.data.dataset import ImageTensors
from fastprompt.evaluation.plan import plan_attacks
from fastprompt.evaluation.stages import How
from fastprompt.kernels.random_start.reference import philox

EPS, ALPHA, STEPS = 0.05, 0.02, 6
TRANSFER = [
    pytest.param(MIFGSM, {"decay": 0.9}, id="mi"),
    pytest.param(DIFGSM, {"decay": 0.5, "diversity_prob": 0.7, "resize_rate": 0.5}, id="di"),
    pytest.param(TIFGSM, {"decay": 1.0, "len_kernel": 5, "nsig": 2}, id="ti"),
    pytest.param(TIFGSM, {"diversity_prob": 1.0, "resize_rate": 0.6}, id="ti-di"),
]


def case(n=4):
    model = Curved(dtype=torch.float64)
    x, y = batch(n, dtype=torch.float64)
    return model, x, y


def gradient(loss, x):
    x = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(x), x)
    return grad


def project(moved, x):
    return torch.clamp(x + torch.clamp(moved - x, -EPS, EPS), 0, 1)


# ---- slow spellings, one image at a time ---------------------------------------------------------


def slow_view(image, index, step, seed, rate, prob):
    """DI-FGSM's transformation with the random numbers of Philox in Python integers."""
    one, two, three, four = philox((step, 2**31 + 2, index, 0), seed)
    if four >= prob * 2**32:
        return image
    side = image.shape[-1]
    size = int(side * rate) + (one * (side - int(side * rate)) >> 32)
    top, left = (word * (side - size) >> 32 for word in (two, three))
    small = F.interpolate(image[None], size=[size, size], mode="bilinear", align_corners=False)[0]
    return F.pad(small, [left, side - size - left, top, side - size - top])


def slow_smooth(grad, length, nsig):
    """TI-FGSM's convolution as a sum over shifted gradients."""
    at = [-nsig + 2 * nsig * i / (length - 1) for i in range(length)]
    weight = [[math.exp(-(a * a + b * b) / 2) for a in at] for b in at]
    total, half = sum(map(sum, weight)), length // 2
    padded = F.pad(grad, [half] * 4)
    side = grad.shape[-1]
    return sum(
        weight[i][j] / total * padded[:, i : i + side, j : j + side]
        for i in range(length)
        for j in range(length)
    )


def slow_transfer(model, x, y, index, attack):
    adv, g = x, torch.zeros_like(x)
    for step in range(STEPS):

        def loss(image, step=step):
            seen = image
            if attack.diversity_prob:
                given = index, step, attack.seed, attack.resize_rate, attack.diversity_prob
                seen = slow_view(image, *given)
            return F.cross_entropy(model(seen[None]), y[None])

        grad = gradient(loss, adv)
        if attack.kernel is not None:
            grad = slow_smooth(grad, len(attack.kernel), attack_nsig(attack))
        g = attack.decay * g + grad / grad.abs().sum()
        adv = project(adv + ALPHA * g.sign(), x)
    return adv


def attack_nsig(attack):
    edge, center = float(attack.kernel[0]), float(attack.kernel[len(attack.kernel) // 2])
    return math.sqrt(-2 * math.log(edge / center))


@pytest.mark.parametrize(("kind", "options"), TRANSFER)
def test_transfer_attacks_are_their_papers(kind, options):
    model, x, y = case()
    attack = kind(model, EPS, ALPHA, STEPS, seed=5, **options)
    indices = torch.tensor([3, 8, 2, 11])
    found = attack.run(x, y, indices=indices).images
    for i in range(len(x)):
        slow = slow_transfer(model, x[i], y[i], int(indices[i]), attack)
        torch.testing.assert_close(found[i], slow, rtol=0, atol=1e-12)


def test_tpgd_is_trades_inner_maximization():
    model, x, y = case()
    attack = TPGD(model, EPS, ALPHA, STEPS)
    found = attack.run(x, y).images
    start = attack.start(x, torch.arange(4), 0)
    for i in range(4):
        clean, adv = model(x[i][None]).detach().softmax(1), start[i]
        for _ in range(STEPS):

            def loss(image, clean=clean):
                return (clean * (clean.log() - model(image[None]).log_softmax(1))).sum()

            adv = project(adv + ALPHA * gradient(loss, adv).sign(), x[i])
        torch.testing.assert_close(found[i], adv, rtol=0, atol=1e-12)


def test_the_start_of_tpgd_is_normal_noise_in_the_ball():
    x = torch.full((64, 3, 32, 32), 0.5, dtype=torch.float64)
    noise = TPGD(Linear(), eps=0.1).start(x, torch.arange(64), 0) - x
    n = noise.numel()
    assert abs(float(noise.mean())) < 4 * 0.001 / n**0.5
    assert abs(float(noise.std()) - 0.001) < 4 * 0.001 / (2 * n) ** 0.5
    inside = (noise.abs() < 0.001).double().mean()
    assert abs(float(inside) - math.erf(0.5**0.5)) < 4 * (0.32 * 0.68 / n) ** 0.5
    small = TPGD(Linear(), eps=0.0005).start(x, torch.arange(64), 0) - x
    assert small.abs().max() <= 0.0005 + 1e-7
    assert not torch.equal(noise[0], noise[1])


def test_resize_and_pad_is_that_of_torch():
    x, _ = batch(5, size=9, dtype=torch.float64)
    sizes = torch.tensor([[9, 9], [5, 8], [8, 5], [1, 9], [7, 7]])
    places = torch.tensor([[0, 0], [4, 1], [1, 2], [8, 0], [2, 0]])
    found = transfer.resize_and_pad(x, sizes, places)
    for image, out, (height, width), (top, left) in zip(x, found, sizes, places, strict=True):
        small = F.interpolate(image[None], size=[int(height), int(width)], mode="bilinear")[0]
        wanted = F.pad(small, [int(left), int(9 - width - left), int(top), int(9 - height - top)])
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


# ---- contracts -----------------------------------------------------------------------------------

ALL = [pytest.param(TPGD, {"restarts": 2}, id="tpgd"), *TRANSFER]


@pytest.mark.parametrize(("kind", "options"), ALL)
@pytest.mark.parametrize("stop", [False, True])
def test_splitting_a_batch_changes_no_image_and_none_leaves_the_ball(kind, options, stop):
    model, x, y = close_calls(7, kind=Curved)
    attack = kind(model, EPS, ALPHA, STEPS, seed=3, stop=stop, **options)
    indices = torch.arange(100, 107)
    whole = attack.run(x, y, indices=indices)
    parts = [attack.run(x[i], y[i], indices=indices[i]) for i in (slice(0, 2), slice(2, 7))]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert (whole.images - x).abs().max() <= EPS + 1e-7
    assert whole.images.min() >= 0
    assert whole.images.max() <= 1
    assert torch.equal(whole.success, model(whole.images).argmax(1) != y)
    few = kind(model, EPS, ALPHA, STEPS, seed=3, stop=stop, batch=2, **options)
    assert torch.equal(few.run(x, y, indices=indices).success, whole.success)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_a_model_without_gradients_is_not_trusted(kind, options):
    x, y = batch()
    result = kind(lambda images: torch.zeros(len(images), 5), EPS, **options).run(x, y)
    assert not result.trusted


def test_momentum_does_not_hide_vanished_gradients():
    class Flat(Linear):  # no gradient once a pixel has moved
        def forward(self, x):
            moved = (x.flatten(1) - x0.flatten(1)).abs().amax(dim=1, keepdim=True) > 0
            return torch.where(moved, super().forward(x).detach(), super().forward(x))

    x0, y = batch()
    result = MIFGSM(Flat(), EPS, ALPHA, STEPS).run(x0, y)
    assert not result.trusted
    assert torch.equal(result.health.zero, torch.full((4,), (STEPS - 1) * x0[0].numel()))


def test_an_image_that_only_the_transformation_fools_is_not_fooled():
    """With ``stop``, the iterate is judged as it is, not as the attack saw it."""

    class Edge(Linear):  # class 1 if a pixel at the border is black, as padding makes it
        def forward(self, x):
            black = (x[:, 0, -1, -1] == 0)[:, None]
            return torch.where(black, self.one, self.zero) + 0 * x.flatten(1)[:, :2]

        zero, one = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])

    x = 0.5 + 0 * batch(3)[0]
    attack = DIFGSM(Edge(), EPS, ALPHA, STEPS, diversity_prob=1.0, resize_rate=0.5, stop=True)
    assert not attack.run(x, torch.zeros(3, dtype=torch.int64)).success.any()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TPGD, {"eps": 0}, "eps must be above 0"),
        (MIFGSM, {"decay": -1}, "decay must be"),
        (DIFGSM, {"resize_rate": 0}, "resize_rate must be"),
        (DIFGSM, {"resize_rate": 1.1}, "resize_rate must be"),
        (DIFGSM, {"diversity_prob": 2}, "diversity_prob must be"),
        (TIFGSM, {"len_kernel": 4}, "len_kernel must be odd, got 4"),
        (TIFGSM, {"nsig": 0}, "nsig must be"),
    ],
)
def test_wrong_arguments_are_told(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(Linear(), **options)


# ---- evaluate ------------------------------------------------------------------------------------

NAMES = ["tpgd-3", "mi-fgsm-3", "di-fgsm-3", "ti-fgsm-3"]


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_runs_them_adaptively_and_on_a_surrogate(name):
    x, _ = batch(12)
    model, other = Linear(), Linear(seed=1)
    data = ImageTensors((255 * x).to(torch.uint8), model((255 * x).floor() / 255).argmax(1))
    options = {"eps": "8/255", "progress": False, "sanity": "off"}
    names = [name, f"{name}@other"]
    rows = evaluate(model, data, names, surrogates={"other": other}, **options).rows
    found = {row["attack"]: row for row in rows}
    assert found[name]["path"] == "adaptive"
    assert found[names[1]]["path"] == "transfer:other"
    assert found[name]["accuracy"] < found[names[1]]["accuracy"] <= found["clean"]["accuracy"]


def test_step_sizes_and_radii():
    (tpgd, mi, di, ti) = plan_attacks(NAMES, 0.06, How())
    assert tpgd.settings["alpha"] == 0.015
    assert all(one.settings["alpha"] == 0.02 for one in (mi, di, ti))
    assert (mi.settings["decay"], di.settings["decay"], ti.settings["decay"]) == (1.0, 0.0, 0.0)
    assert (di.settings["diversity_prob"], ti.settings["kernel"]) == (0.5, "Gaussian, 15 pixels")
    assert len(plan_attacks(NAMES[1:], 0.0, How())) == 3
    with pytest.raises(ValueError, match="eps must be above 0 for 'tpgd-3'"):
        plan_attacks(NAMES, 0.0, How())
    with pytest.raises(ValueError, match=r"unknown attack 'mi-fgsm'.*'mi-fgsm-N'"):
        plan_attacks("mi-fgsm", 0.1, How())


# ---- torchattacks --------------------------------------------------------------------------------


@pytest.mark.peers
def test_mifgsm_equals_torchattacks_bit_for_bit(torchattacks, bundled_clip):
    model = bundled_clip.zero_shot(["red circle", "blue star", "green moon", "pink heart"])
    images, labels = batch(4, size=48, classes=4)
    options = {"eps": 4 / 255, "alpha": 1 / 255, "steps": 5, "decay": 1.0}
    peer = torchattacks.MIFGSM(model, **options)(images, labels)
    assert torch.equal(MIFGSM(model, **options)(images, labels), peer)


@pytest.mark.peers
def test_tpgd_equals_torchattacks_from_the_same_start(torchattacks, monkeypatch):
    model, x, y = case()
    ours = TPGD(model, EPS, ALPHA, STEPS)
    noise = (ours.start(x, torch.arange(4), 0) - x) / 0.001
    monkeypatch.setattr(torch, "randn_like", lambda images: noise)
    peer = torchattacks.TPGD(model, EPS, ALPHA, STEPS)(x, y)
    torch.testing.assert_close(ours(x, y), peer, rtol=0, atol=1e-12)


@pytest.mark.peers
def test_tifgsm_equals_torchattacks_without_its_resizing(torchattacks):
    model, x, y = case()
    options = {"eps": EPS, "alpha": ALPHA, "steps": STEPS, "decay": 1.0}
    peer = torchattacks.TIFGSM(model, diversity_prob=0.0, resize_rate=0.5, **options)
    peer.stacked_kernel = peer.stacked_kernel.double()  # rounded to float32
    torch.testing.assert_close(TIFGSM(model, **options)(x, y), peer(x, y), rtol=0, atol=1e-12)


@pytest.mark.peers
def test_difgsm_equals_torchattacks_with_the_same_draws(torchattacks, monkeypatch):
    """It draws once per batch and step; here every image gets that draw."""
    model, x, y = case()
    options = {"eps": EPS, "alpha": ALPHA, "steps": STEPS, "decay": 1.0}
    options |= {"resize_rate": 0.5, "diversity_prob": 0.6}
    torch.manual_seed(0)
    peer = torchattacks.DIFGSM(model, **options)(x, y)
    torch.manual_seed(0)

    def draw(self, index, number, shape):
        size = torch.randint(4, 8, (1,))
        place = [torch.randint(0, 8 - int(size), (1,)) for _ in range(2)]
        apply = torch.rand(1) < 0.6
        n = len(index)
        return size.expand(n, 2), torch.cat(place).expand(n, 2), apply.expand(n)

    monkeypatch.setattr(transfer._DiverseAscent, "draw", draw)
    torch.testing.assert_close(DIFGSM(model, **options)(x, y), peer, rtol=0, atol=1e-12)


def test_momentum_and_pgd_reach_the_same_optimum_of_a_linear_model():
    model = Linear(classes=2, dtype=torch.float64)
    x, y = batch(dtype=torch.float64, classes=2)
    x = 0.3 + 0.4 * x
    pgd = PGD(model, EPS, ALPHA, STEPS, random_start=False)(x, y)
    torch.testing.assert_close(MIFGSM(model, EPS, ALPHA, STEPS)(x, y), pgd, rtol=0, atol=1e-12)
