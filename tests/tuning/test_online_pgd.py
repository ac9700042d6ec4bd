"""The attack inside a tuning step: what it computes, what it costs, what it leaves alone."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.functional as F
from helpers.models import small_model
from torch import nn

from fastprompt import PGD, load_clip
from fastprompt.attacks.random_start import random_start
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.tuning.online_pgd import OnlinePGD

NAMES = ["cat", "very small dog", "red circle", "fish", "bird"]
EPS, ALPHA = 4 / 255, 1.5 / 255
SLACK = 1e-7  # what rounding may exceed the ball by
ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])


@pytest.fixture(scope="module")
def clip():
    return load_clip(small_model())


@pytest.fixture(scope="module")
def double():
    return load_clip(small_model().double())


def prompted(clip, engine: str = "fast", names=NAMES, perturbed: float = 0.1) -> PromptedCLIP:
    """Prompts and refiners, none at its start value."""
    prompts = DeepPrompts(2, 3, 24, 32, refiners=1, seed=2).to(clip.dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in prompts.parameters():
            p += perturbed * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return PromptedCLIP(clip, names, prompts, engine=engine)


def batch(n: int = 4, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, 3, 48, 48, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(n) % len(NAMES), torch.arange(n) + 10


# ---- what a step costs ----------------------------------------------------------------------


class Calls:
    """Forward and backward passes of a module, by what they were given."""

    def __init__(self) -> None:
        self.forward: list[int] = []  # sizes
        self.backward = 0


@contextmanager
def counted(module: nn.Module, size):
    """Calls of ``module``; ``size`` tells one from its input and output."""
    calls = Calls()

    def back(grad):
        calls.backward += 1

    def hook(_, inputs, output):
        calls.forward.append(size(inputs, output))
        if output.requires_grad:
            output.register_hook(back)

    handle = module.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def tuning_step(model: PromptedCLIP, x, y, indices, **options) -> None:
    prepared = model.prepare() if model.engine == "fast" else None
    attack = OnlinePGD(model, EPS, ALPHA, **options)
    adv = attack(x, y, indices, prepared).images
    clean, attacked = model.pair(x, adv, prepared)
    (0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(attacked, y)).backward()


def tokens(inputs, output) -> int:
    return output.numel() // output.shape[-1]


def images(inputs, output) -> int:
    return len(inputs[0])


def test_the_reference_step_runs_the_text_encoder_seven_times(clip):
    """PGD-5, then clean and adversarial: as published code does."""
    model = prompted(clip, "reference")
    with ExitStack() as stack:
        text = stack.enter_context(counted(clip.model.transformer.resblocks[0], tokens))
        last = stack.enter_context(counted(clip.model.transformer.resblocks[-1], tokens))
        image = stack.enter_context(counted(model.image, images))
        tuning_step(model, *batch(), steps=5)
    for block in (text, last):
        assert block.forward == [77 * len(NAMES)] * 7
        assert block.backward == 7
    assert image.forward == [4] * 7
    assert image.backward == 7
    assert all(p.grad.norm() > 1e-6 for p in model.prompts.parameters())


def test_the_fast_step_runs_the_text_encoder_once(clip):
    model = prompted(clip)
    with ExitStack() as stack:
        text = stack.enter_context(counted(model.text, lambda i, o: len(o)))
        image = stack.enter_context(counted(model.image, images))
        full = stack.enter_context(counted(clip.model.transformer.resblocks[0], tokens))
        tuning_step(model, *batch(), steps=5)
    assert text.forward == [len(NAMES)]
    assert text.backward == 1
    assert image.forward == [4] * 5 + [8]
    assert image.backward == 6
    assert full.forward == []  # and never open_clip's own blocks at full length
    assert all(p.grad.norm() > 1e-6 for p in model.prompts.parameters())


def test_without_prepared_prompts_the_attack_prepares_them_once(clip):
    model, (x, y, indices) = prompted(clip), batch()
    prepared = model.prepare()
    with counted(model.text, lambda i, o: len(o)) as text:
        alone = OnlinePGD(model, EPS, ALPHA, 3)(x, y, indices)
        assert text.forward == [len(NAMES)]
        assert text.backward == 0
        shared = OnlinePGD(model, EPS, ALPHA, 3)(x, y, indices, prepared)
        assert text.forward == [len(NAMES)]
    assert torch.equal(alone.images, shared.images)
    assert prepared.text.requires_grad  # the loss still can go through it


# ---- what it leaves alone -------------------------------------------------------------------


def leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The leaf tensors that a graph reaches."""
    found, seen, stack = [], set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("with_prepared", [True, False])
def test_inside_the_fast_attack_no_graph_reaches_the_prompts(clip, with_prepared):
    model, (x, y, indices) = prompted(clip), batch()
    inside, real = [], model.attack_loss

    def spy(pixels, *rest):
        loss = real(pixels, *rest)
        inside.append(not any(p.requires_grad for p in model.prompts.parameters()))
        (leaf,) = leaves(loss)
        inside.append(leaf is pixels)
        return loss

    model.attack_loss = spy
    prepared = model.prepare() if with_prepared else None
    OnlinePGD(model, EPS, ALPHA, 2)(x, y, indices, prepared)
    assert inside == [True] * 4
    assert all(p.requires_grad for p in model.prompts.parameters())
    assert all(p.grad is None for p in model.prompts.parameters())


def test_a_failure_inside_the_attack_leaves_the_prompts_learnable(clip):
    model = prompted(clip)
    model.prompts.map_bias.requires_grad_(False)  # the user's own choice

    def failing(*_):
        raise RuntimeError("out of memory, say")

    model.attack_loss = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        OnlinePGD(model, EPS, ALPHA, 2)(*batch())
    learning = {name for name, p in model.prompts.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.prompts.named_parameters()} - {"map_bias"}


@ENGINES
@pytest.mark.parametrize("before", ["none", "some"])
def test_gradients_of_the_prompts_are_as_they_were(clip, engine, before):
    model = prompted(clip, engine)
    parameters = list(model.prompts.parameters())
    if before == "some":
        for i, p in enumerate(parameters):
            p.grad = torch.full_like(p, float(i + 1))
    x, y, indices = batch()
    x.requires_grad_()
    OnlinePGD(model, EPS, ALPHA, 2)(x, y, indices)
    for i, p in enumerate(parameters):
        assert p.grad is None if before == "none" else bool((p.grad == i + 1).all())
    assert x.grad is None
    assert all(p.grad is None for p in clip.parameters())


@ENGINES
def test_the_attack_runs_where_gradients_are_off(clip, engine):
    model, (x, y, indices) = prompted(clip, engine), batch()
    attack = OnlinePGD(model, EPS, ALPHA, 2)
    wanted = attack(x, y, indices).images
    with torch.no_grad():
        assert torch.equal(attack(x, y, indices).images, wanted)
        assert not torch.is_grad_enabled()


# ---- what it computes -----------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("start", [True, False])
def test_images_stay_in_ball_and_box(clip, engine, start):
    x, y, indices = batch()
    x[0], x[1] = 0.0, 1.0  # where the box cuts the ball
    given = x.clone()
    adv = OnlinePGD(prompted(clip, engine), EPS, ALPHA, 4, random_start=start)(x, y, indices).images
    assert adv.dtype == torch.float32
    assert adv.shape == x.shape
    assert not adv.requires_grad
    assert (adv - x).abs().amax() <= EPS + SLACK
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert (adv - x).abs().amax(dim=(1, 2, 3)).min() > EPS / 2  # each of them has moved
    assert torch.equal(x, given)


@ENGINES
def test_the_attack_raises_the_loss(clip, engine):
    model, (x, y, indices) = prompted(clip, engine), batch()
    adv = OnlinePGD(model, EPS, ALPHA, 4)(x, y, indices).images
    losses = [F.cross_entropy(model(z), y, reduction="none") for z in (x, adv)]
    assert (losses[1] > losses[0]).all()


def test_the_loss_is_summed_over_the_batch(double):
    """A mean in low precision underflows, and would depend on the batch's size."""
    model, (x, y, _) = prompted(double), batch(dtype=torch.float64)
    alone = [F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    fixed = model.prepare().detached()
    torch.testing.assert_close(model.attack_loss(x, y, *fixed), sum(alone), rtol=1e-12, atol=0)


def plain_loop(logits_of, x, y, start, steps: int) -> torch.Tensor:
    """PGD written out, in torchattacks' order of operations."""
    adv = start
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        loss = F.cross_entropy(logits_of(adv), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, adv)
        moved = adv.detach() + ALPHA * grad.sign()
        adv = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
    return adv


@pytest.mark.parametrize("draw", [0, 3])
def test_it_is_pgd_on_the_frozen_classifier_bit_for_bit(clip, draw):
    model, (x, y, indices) = prompted(clip), batch()
    classifier = model.classifier()
    ours = OnlinePGD(model, EPS, ALPHA, 3, seed=7)(x, y, indices, draw=draw).images
    start = random_start(x, EPS, indices, seed=7, restart=draw, sides="two-sided")
    assert torch.equal(ours, plain_loop(classifier, x, y, start, 3))
    if draw == 0:  # PGD's first random start is that of draw 0
        pgd = PGD(classifier, EPS, ALPHA, 3, seed=7).run(x, y, indices=indices)
        assert torch.equal(ours, pgd.images)
    # and it goes through the visual prompts and the refiners
    for without in ({"visual": None}, {"refiners": None}):
        blind = model.classifier()
        for name, value in without.items():
            setattr(blind, name, value)
        if "visual" in without:
            blind.image_tower = clip.zero_shot(NAMES).image_tower
        assert not torch.equal(ours, plain_loop(blind, x, y, start, 3))


@ENGINES
def test_without_a_start_it_starts_at_the_image(double, engine):
    model, (x, y, indices) = prompted(double, engine), batch(dtype=torch.float64)
    ours = OnlinePGD(model, EPS, ALPHA, 3, random_start=False)(x, y, indices)
    assert torch.equal(ours.images, plain_loop(model.classifier(), x, y, x, 3))
    plain = PGD(model.classifier(), EPS, ALPHA, 3, random_start=False).run(x, y)
    assert torch.equal(ours.images, plain.images)


def test_both_engines_take_the_same_way(double):
    fast, reference = prompted(double), prompted(double, "reference")
    x, y, indices = batch(dtype=torch.float64)
    for steps in (1, 2, 3):
        ours, theirs = (
            OnlinePGD(m, EPS, ALPHA, steps)(x, y, indices, draw=2) for m in (fast, reference)
        )
        assert torch.equal(ours.images, theirs.images)
        for counts in ("zero", "nonfinite"):
            assert torch.equal(getattr(ours.health, counts), getattr(theirs.health, counts))


CLAMPS = pytest.mark.parametrize("clamp", ["always", "steps", "inputs", "end"])


def clamping_loop(logits_of, x, y, start, steps: int, clamp: str) -> torch.Tensor:
    """PGD written out, with the pixels clamped to [0, 1] in each step or after the last."""
    adv = start.clamp(0, 1) if clamp == "always" else start
    for _ in range(steps):
        seen = (adv.clamp(0, 1) if clamp == "inputs" else adv).detach().requires_grad_()
        loss = F.cross_entropy(logits_of(seen), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, seen)
        adv = x + (adv + ALPHA * grad.sign() - x).clamp(-EPS, EPS)
        if clamp in ("always", "steps"):
            adv = adv.clamp(0, 1)
    return adv.clamp(0, 1)


@ENGINES
@CLAMPS
@pytest.mark.parametrize("random", [True, False])
def test_pixels_are_clamped_when_the_setting_says(double, engine, clamp, random, monkeypatch):
    """Most pixels are black or white, where the attack leaves [0, 1]."""
    model, (x, y, indices) = prompted(double, engine), batch(dtype=torch.float64)
    x = (4 * x - 1.5).clamp(0, 1)
    noise = EPS * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) - 1).double()
    if random:
        monkeypatch.setattr(
            "fastprompt.tuning.online_pgd.draw_start",
            lambda x, *_, clamp, **__: (x + noise).clamp(0, 1) if clamp else x + noise,
        )
    ours = OnlinePGD(model, EPS, ALPHA, 3, random_start=random, clamp=clamp)(x, y, indices).images
    start = x + noise if random else x
    wanted = clamping_loop(model.classifier(), x, y, start, 3, clamp)
    assert torch.equal(ours, wanted)
    assert ours.min() == 0
    assert ours.max() == 1
    other = clamping_loop(model.classifier(), x, y, start, 3, "always")
    assert torch.equal(ours, other) == (clamp == "always" or (clamp == "steps" and not random))


@CLAMPS
def test_only_a_clamped_start_stays_in_the_box(clip, clamp):
    model, (x, y, indices) = prompted(clip), batch()
    x[0], x[1] = 0.0, 1.0
    outside, real = [], model.attack_loss

    def spy(pixels, *rest):
        outside.append(bool((pixels < 0).any() and (pixels > 1).any()))
        return real(pixels, *rest)

    model.attack_loss = spy
    OnlinePGD(model, EPS, ALPHA, 2, clamp=clamp)(x, y, indices)
    wanted = {"steps": [True, False], "end": [True, True]}
    assert outside == wanted.get(clamp, [False, False])


# ---- random starts --------------------------------------------------------------------------


@ENGINES
def test_splitting_a_batch_changes_no_image(double, engine):
    """In float64, where rounding turns no sign."""
    model, (x, y, indices) = prompted(double, engine), batch(5, torch.float64)
    attack = OnlinePGD(model, EPS, ALPHA, 3, seed=1)
    whole = attack(x, y, indices, draw=1).images
    for rows in ([0], [1, 2], [4, 3]):
        part = attack(x[rows], y[rows], indices[rows], draw=1).images
        assert torch.equal(part, whole[rows])
    # by index, not by place in the batch
    assert not torch.equal(attack(x, y, indices + 1, draw=1).images, whole)


@ENGINES
def test_seed_and_draw_key_the_start(clip, engine):
    model, (x, y, indices) = prompted(clip, engine), batch()

    def images(seed=0, draw=0):
        return OnlinePGD(model, EPS, ALPHA, 1, seed=seed)(x, y, indices, draw=draw).images

    assert torch.equal(images(), images())
    others = [images(), images(seed=1), images(draw=1), images(seed=1, draw=1)]
    for i, one in enumerate(others):
        for other in others[:i]:
            assert (one != other).float().mean() > 0.5


# ---- the edges ------------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("start", [True, False])
def test_eps_zero_leaves_the_images_alone(clip, engine, start):
    x, y, indices = batch()
    result = OnlinePGD(prompted(clip, engine), 0, ALPHA, 2, random_start=start)(x, y, indices)
    assert torch.equal(result.images, x)
    assert result.trusted


@ENGINES
@pytest.mark.parametrize("start", [True, False])
def test_an_empty_batch_comes_back_empty(clip, engine, start):
    x, y, indices = (t[:0] for t in batch())
    result = OnlinePGD(prompted(clip, engine), EPS, ALPHA, 2, random_start=start)(x, y, indices)
    assert result.images.shape == (0, 3, 48, 48)
    assert len(result.health.zero) == 0
    assert result.trusted


@ENGINES
def test_gradient_health_counts_zeros_and_nans(clip, engine):
    x, y, indices = batch(3)
    entries = 2 * x[0].numel()
    healthy = OnlinePGD(prompted(clip, engine), EPS, ALPHA, 2)(x, y, indices)
    assert healthy.trusted
    assert healthy.health.entries == entries
    assert healthy.health.nonfinite.tolist() == [0] * 3
    # of one class the cross-entropy is 0 everywhere
    one = prompted(clip, engine, names=["cat"])
    flat = OnlinePGD(one, EPS, ALPHA, 2, random_start=False)(x, torch.zeros_like(y), indices)
    assert flat.health.zero.tolist() == [entries] * 3
    assert not flat.trusted
    assert torch.equal(flat.images, x)
    broken = prompted(clip, engine)
    with torch.no_grad():
        broken.prompts.tokens.fill_(float("nan"))
    lost = OnlinePGD(broken, EPS, ALPHA, 2, random_start=False)(x, y, indices)
    assert lost.health.nonfinite.tolist() == [entries] * 3
    assert not lost.trusted
    assert torch.equal(lost.images, x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "^eps .*-0.1"),
        ({"eps": 4}, ValueError, "^eps .*1.*4/255"),
        ({"alpha": 0}, ValueError, "^alpha .*0.*0"),
        ({"steps": 0}, ValueError, "^steps .*1.*0"),
        ({"steps": 1.5}, TypeError, "^steps .*1.5"),
        ({"eps": None}, TypeError, "^eps .*None"),
        ({"clamp": "never"}, ValueError, "^clamp .*'always'.*'inputs'.*'end'.*'never'"),
    ],
)
def test_settings_out_of_range_are_refused(clip, options, error, message):
    with pytest.raises(error, match=message):
        OnlinePGD(prompted(clip), **options)


def test_settings_as_fractions(clip):
    attack = OnlinePGD(prompted(clip), "4/255", "1/255")
    assert (attack.eps, attack.alpha) == (4 / 255, 1 / 255)


# ---- each image's own radius ----------------------------------------------------------------

RADII = (1 / 255, 2.5 / 255, 4 / 255, 0.0)


def radii(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(RADII, dtype=dtype)


SETTINGS = [(EPS, ALPHA), (4 / 255, 8 / 765), (1 / 255, 0.3 / 255)]
ALL_EPS = [
    (torch.float32, 8 / 255, 2 / 255),
    *((torch.float64, *setting) for setting in SETTINGS),
    *((torch.float32, *setting) for setting in SETTINGS),
]


@ENGINES
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize(("dtype", "eps", "alpha"), ALL_EPS)
def test_radii_that_are_all_eps_give_the_same_bits(engine, start, dtype, eps, alpha, request):
    clip = request.getfixturevalue("double" if dtype == torch.float64 else "clip")
    model, (x, y, indices) = prompted(clip, engine), batch(dtype=dtype)
    attack = OnlinePGD(model, eps, alpha, 3, random_start=start)
    radius = torch.full((4,), eps, dtype=dtype)
    plain = attack(x, y, indices, draw=1)
    ours = attack(x, y, indices, draw=1, radius=radius)
    assert torch.equal(ours.images, plain.images)
    assert torch.equal(ours.health.zero, plain.health.zero)


@ENGINES
@pytest.mark.parametrize("start", [True, False])
def test_each_radius_is_an_attack_of_its_own(double, engine, start):
    """Image by image, with that eps and an alpha that shrinks as it does."""
    model, (x, y, indices) = prompted(double, engine), batch(dtype=torch.float64)
    attack = OnlinePGD(model, EPS, ALPHA, 3, random_start=start, seed=2)
    together = attack(x, y, indices, draw=1, radius=radii()).images
    for i, eps in enumerate(RADII):
        own = slice(i, i + 1)
        alpha = ALPHA * eps / EPS or ALPHA
        single = OnlinePGD(model, eps, alpha, 3, random_start=start, seed=2)
        alone = single(x[own], y[own], indices[own], draw=1).images
        assert (together[own] - alone).abs().max() <= 1e-12
    moved = (together - x).abs().amax(dim=(1, 2, 3))
    assert (moved <= radii() + 1e-12).all()
    assert (moved >= 0.99 * radii()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_engines_take_the_same_way_with_radii(double, dtype):
    x, y, indices = batch(dtype=torch.float64)
    ours, theirs = (
        OnlinePGD(prompted(double, engine), EPS, ALPHA, 3)(x, y, indices, radius=radii(dtype))
        for engine in ("fast", "reference")
    )
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.health.zero, theirs.health.zero)


@ENGINES
def test_radii_leave_what_they_are_given_alone(clip, engine):
    model, (x, y, indices) = prompted(clip, engine), batch()
    given, before = radii(torch.float32), x.clone()
    adv = OnlinePGD(model, EPS, ALPHA, 2)(x, y, indices, radius=given).images
    assert torch.equal(given, radii(torch.float32))
    assert torch.equal(x, before)
    assert torch.equal(adv[3], x[3])  # a radius of 0


@ENGINES
def test_with_an_eps_of_zero_radii_may_be_zero_too(clip, engine):
    x, y, indices = batch()
    attack = OnlinePGD(prompted(clip, engine), 0, ALPHA, 2)
    assert torch.equal(attack(x, y, indices, radius=torch.zeros(4)).images, x)


@ENGINES
@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), (1,), ()])
def test_radii_of_a_wrong_shape_are_refused(clip, engine, shape):
    attack = OnlinePGD(prompted(clip, engine), EPS, ALPHA, 2)
    with pytest.raises(ValueError, match=r"^radius .*\[4\].*\["):
        attack(*batch(), radius=torch.zeros(shape))


@ENGINES
def test_radii_that_are_no_numbers_with_a_point_are_refused(clip, engine):
    attack = OnlinePGD(prompted(clip, engine), EPS, ALPHA, 2)
    with pytest.raises((TypeError, ValueError), match=r"eps|radius"):
        attack(*batch(), radius=torch.zeros(4, dtype=torch.int64))
