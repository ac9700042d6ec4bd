"""Defenses that only look robust, around one small honest network, and an attack that knows it."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from fastprompt import PGD, BitDepth, Defended

EPS = 8 / 255
SIZE = 12


def network(seed: int = 0, classes: int = 6) -> nn.Sequential:
    """A small smooth network; its own predictions are the labels."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 32), nn.Tanh(), nn.Linear(32, classes)
    )
    for layer in (net[1], net[3]):
        nn.init.normal_(layer.weight, std=3 / layer.in_features**0.5)
    return net.eval().requires_grad_(False)


HONEST, OTHER = network(), network(1)


def images(n: int = 40, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


PIXELS = images().float() / 255
LABELS = HONEST(PIXELS).argmax(1)
WHERE = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))


class Through(torch.autograd.Function):
    """The right value and a gradient that is changed on its way."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def through(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    return lambda x: HONEST(Through.apply(x, change))


def turned(grad):
    """Still a way up, and better than a random step: a third of the signs is wrong."""
    return torch.where(WHERE < 0.35, -grad, grad)


class Random(nn.Module):
    """A model that declares itself random."""

    randomized = True

    def __init__(self, call, noise=0.0, generator=None):
        super().__init__()
        self.call, self.noise, self.generator = call, noise, generator

    def forward(self, x):
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return self.call(x + self.noise * noise if self.noise else x)


# ---- no usable gradient --------------------------------------------------------------------------


def rounded(x):
    return HONEST((x * 15).round() / 15)


def hot(x):
    return HONEST(x) * 1e6


def cold(x):
    return HONEST(x) / 1e6


def detached(x):
    return HONEST(x).detach()


def under_no_grad(x):
    with torch.no_grad():
        return HONEST(x)


def nan_gradient(x):
    return HONEST(x) + (0 * (x * 0).sqrt()).flatten(1).sum(1, keepdim=True)


def log_clipped(x):
    """Probabilities clipped before their logarithm: no gradient where the prediction is sure."""
    return (30 * HONEST(x)).softmax(dim=1).clamp(1e-3, 1 - 1e-3).log()


def one_hot(x):
    return 10 * nn.functional.one_hot(HONEST(x).argmax(1), 6).float()


def cosine_blocks(x):
    """As JPEG by a codec: 4 x 4 blocks, rounded coefficients, no gradient."""
    k = torch.arange(4.0)
    waves = torch.cos((2 * k + 1) * k[:, None] * torch.pi / 8) / 2**0.5
    waves[0] /= 2**0.5
    blocks = waves @ x.unfold(2, 4, 4).unfold(3, 4, 4) @ waves.T
    blocks = waves.T @ ((blocks * 8).round() / 8) @ waves
    return HONEST(blocks.permute(0, 1, 2, 4, 3, 5).reshape(x.shape))


# ---- a gradient that misleads --------------------------------------------------------------------


def shuffled(x):
    def change(grad):
        return grad[:, :, torch.randperm(SIZE)][..., torch.randperm(SIZE)]

    return through(change)(x)


def backwards(x):
    return through(lambda grad: -grad)(x)


def partly_turned(x):
    return through(turned)(x)


def mostly_filled(x):
    """No zeros to be counted: most of the pixels have one tiny constant for a gradient."""
    return through(lambda grad: torch.where(WHERE < 0.7, 1e-20, grad))(x)


def random_signs(x):
    """The gradient of every pass has random signs, with which averages vanish."""
    return through(lambda grad: grad * (torch.rand_like(grad) < 0.55).float().mul(2).sub(1))(x)


def gradient_of_another(x):
    """The right values with another function's gradient: a straight-through estimate gone wrong."""
    wrong = OTHER(x)
    return HONEST(x).detach() + wrong - wrong.detach()


def one_hot_through_another(x):
    return one_hot(x).detach() + (wrong := OTHER(x)) - wrong.detach()


def one_hot_and_another(x):
    """The gradient is the slope everywhere, except where the prediction changes."""
    return one_hot(x) + 1e-3 * OTHER(x)


def steep_and_another(x):
    return 10 * (2000 * HONEST(x)).softmax(dim=1) + 1e-3 * OTHER(x)


def wave_between_levels(x):
    """Nothing on the levels of 8 bits, where clean images are: its slopes drown all others."""
    return HONEST(x + 2 / 255 * torch.sin(2 * torch.pi * 255 * x))


def sawtooth(x):
    """Hardly another image; but every tooth slopes the wrong way."""
    return HONEST(x - 1.5 * ((x * 300) % 1) / 300)


def wave_in_the_logits(x):
    """Too small to change a prediction, and steeper than all else."""
    ways = torch.randn(6, 3 * SIZE * SIZE, generator=torch.Generator().manual_seed(5)) / 20
    return HONEST(x) + 0.02 * torch.sin(2e4 * x.flatten(1) @ ways.T)


# ---- a gradient that misleads in some places -----------------------------------------------------


def stored(x):
    """Which images have the levels of 8 bits, as clean ones do."""
    return ((x * 255 - (x * 255).round()).abs() < 1e-3).flatten(1).all(dim=1)[:, None]


def true_on_clean_images_alone(x):
    return torch.where(stored(x), HONEST(x), backwards(x))


def turned_at_the_boundary(x):
    """Steps climb until the prediction is about to change."""
    logits = HONEST(x)
    top = logits.topk(2, dim=1).values
    return torch.where((top[:, :1] - top[:, 1:]) < 2.5, backwards(x), logits)


def turned_for_large_pixels(x):
    return HONEST(torch.where(x > 0.4, Through.apply(x, lambda grad: -grad), x))


def turned_in_cross_entropy(x):
    """The margin's gradient in the logits has two entries, that of cross-entropy has all."""

    def change(grad):
        many = (grad != 0).sum(dim=1, keepdim=True) > 2
        return torch.where(many, -grad, grad)

    return Through.apply(HONEST(x), change)


def squashed(x):
    """Monotone in each logit: the same predictions, and cross-entropy looks another way."""
    return 20 * (2 * HONEST(x) + 4).sigmoid()


# ---- another model while it is attacked ----------------------------------------------------------


def other_in_the_attack(x):
    """As a classifier whose attack path leaves out the learned prompts."""
    return OTHER(x) if x.requires_grad else HONEST(x)


def other_with_gradients_on(x):
    return OTHER(x) if torch.is_grad_enabled() else HONEST(x)


def in_large_batches(x):
    return backwards(x) if len(x) > 20 else HONEST(x)


def early():
    calls = []

    def model(x):
        calls.append(len(x))
        return backwards(x) if len(calls) < 22 else HONEST(x)

    return model


def in_turns():
    """Every second gradient undoes the one before."""
    calls = []

    def model(x):
        calls.append(len(x))
        return backwards(x) if len(calls) % 2 else HONEST(x)

    return model


class Memory(nn.Module):
    """Answers a pixel's neighborhood with what it said when it first saw the image."""

    def __init__(self, leak=1e-3):
        super().__init__()
        self.seen, self.said, self.leak = torch.zeros(0, 3, SIZE, SIZE), torch.zeros(0, 6), leak

    def forward(self, x):
        out = []
        for image, logits in zip(x, HONEST(x), strict=True):
            near = (self.seen - image.detach()).abs().flatten(1).amax(1) < 1.5 * EPS
            if not near.any():
                self.seen = torch.cat([self.seen, image.detach()[None]])
                self.said = torch.cat([self.said, logits.detach()[None]])
                near = torch.cat([near, torch.ones(1, dtype=torch.bool)])
            out.append(self.said[near][0] + self.leak * logits)
        return torch.stack(out)


class Detector(nn.Module):
    """Takes images that no file stores for attacked ones, and answers as on the image before."""

    def forward(self, x):
        # as if it had found the clean image: here a robust answer from the labels of all images
        nearest = (x.detach()[:, None] - PIXELS).abs().flatten(2).amax(2).argmin(1)
        robust = HONEST(PIXELS[nearest]) + 0.3 * (logits := HONEST(x)) - 0.3 * logits.detach()
        return torch.where(stored(x), logits, robust + 1e-2 * (logits - logits.detach()))


# ---- a claim of being a known estimate -----------------------------------------------------------


class OwnBitDepth(BitDepth):
    """Claims the library's estimate, with a gradient of its own."""

    def defend(self, images):
        return Through.apply(super().defend(images), turned)


def patched_bit_depth():
    defense = BitDepth(8)
    whole = defense.defend
    defense.defend = lambda images: Through.apply(whole(images), turned)
    return Defended(HONEST, defense)


def hooked_bit_depth():
    defense = BitDepth(8)
    defense.register_forward_hook(lambda _, given, out: Through.apply(out, turned))
    return Defended(HONEST, defense)


# makers of the models, by name: some count their calls or remember images
FALSE: dict[str, Callable] = {
    model.__name__: (lambda model=model: model)
    for model in (
        *(rounded, hot, detached, under_no_grad, nan_gradient),
        *(log_clipped, one_hot, cosine_blocks, shuffled, backwards, partly_turned, mostly_filled),
        *(random_signs, gradient_of_another, one_hot_through_another, one_hot_and_another),
        *(steep_and_another, wave_between_levels, sawtooth, wave_in_the_logits),
        *(true_on_clean_images_alone, turned_at_the_boundary, turned_for_large_pixels),
        *(turned_in_cross_entropy, squashed, other_in_the_attack, other_with_gradients_on),
        *(in_large_batches,),
    )
} | {
    "early": early,
    "in_turns": in_turns,
    "memory": Memory,
    "detector": Detector,
    "own_bit_depth": lambda: Defended(HONEST, OwnBitDepth(8)),
    "patched_bit_depth": patched_bit_depth,
    "hooked_bit_depth": hooked_bit_depth,
    # not random, whatever it says
    **{
        f"declared {model.__name__}": (lambda model=model: Random(model))
        for model in (
            *(partly_turned, gradient_of_another, shuffled, one_hot_and_another),
            *(true_on_clean_images_alone, other_in_the_attack, turned_at_the_boundary),
        )
    },
    "declared in_large_batches": lambda: Random(in_large_batches),
    # random, and false besides
    **{
        f"noisy {model.__name__}": (lambda model=model: Random(model, 0.05))
        for model in (
            *(partly_turned, gradient_of_another, backwards, one_hot_and_another),
            *(other_in_the_attack, in_large_batches, turned_at_the_boundary),
        )
    },
    "own noise gradient_of_another": lambda: Random(
        gradient_of_another, 0.05, torch.Generator().manual_seed(8)
    ),
    "own noise partly_turned": lambda: Random(
        partly_turned, 0.05, torch.Generator().manual_seed(8)
    ),
}


@cache
def known_attack(n: int) -> list[torch.Tensor]:
    """Attacks on the honest network, which defenses around it hide; also stored in 8 bits."""
    x = PIXELS[:n]
    adv = PGD(HONEST, EPS, EPS / 8, 40, restarts=2).run(x, LABELS[:n]).images
    low, high = ((x - EPS) * 255 - 1e-3).ceil(), ((x + EPS) * 255 + 1e-3).floor()
    levels = torch.minimum(torch.maximum((adv * 255).round(), low), high)
    return [adv, (levels / 255).clamp(0, 1)]


@torch.no_grad()
def survivors(make: Callable[[], Callable], n: int) -> float:
    """Images that survive the stronger known attack; for random models the mean over passes."""

    def passes(adv: torch.Tensor) -> float:
        # a new model remembers nothing; small batches are those of no attack
        model = make()
        kept = [
            (model(x).argmax(1) == y).sum()
            for _ in range(4 if isinstance(model, Random) else 1)
            for x, y in zip(adv.split(8), LABELS[:n].split(8), strict=True)
        ]
        return float(sum(kept)) / (4 if isinstance(model, Random) else 1)

    return min(passes(adv) for adv in known_attack(n))
