"""`torch.compile`: few graphs without breaks, the same numbers."""

import copy
import shutil
from contextlib import contextmanager

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.models import SMALL
from torch._dynamo.utils import counters

from fastprompt import AdvPTTuner, NAPTuner, load_clip
from fastprompt.data import ImageTensors
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.context import TextContext
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.tuning.online_pgd import OnlinePGD

NAMES = ["cat", "dog", "red fish", "very small thing"]
EXACT = 1e-10
BATCHES = (8, 8, 3)  # an epoch, with a smaller last batch


def tiny_clip(image_layers: int, text_layers: int):
    """A random model in float64, of few layers: the compiler's time grows with them."""
    config = copy.deepcopy(SMALL)
    config["vision_cfg"]["layers"] = image_layers
    config["text_cfg"]["layers"] = text_layers
    torch.manual_seed(0)
    return load_clip(open_clip.CLIP(**config).eval().double())


def learner(clip, depth: int = 2) -> DeepPrompts:
    """Prompts and refiners, none of them at its start value."""
    prompts = DeepPrompts(depth, 2, 24, 32, refiners=depth - 1, seed=3).to(clip.dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in prompts.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return prompts


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@contextmanager
def compiled_by(backend: str):
    """`torch.compile` with another backend, its caches and counters empty before and after."""
    real = torch.compile

    def compile_(function, **options):
        assert options.pop("fullgraph") is True
        return real(function, backend=backend, fullgraph=True, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_)
        torch._dynamo.reset()
        counters.clear()
        yield
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def aot_eager():
    """Quick: everything but the code generator."""
    with compiled_by("aot_eager"):
        yield


@pytest.fixture
def traced():
    """Quicker: the graph is taken, and run as it is."""
    with compiled_by("eager"):
        yield


# the text; the image tower's first block, and those with refiners, for the attack and for the loss
STEP = 1 + 2 * 2


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


class Step:
    """Prompts, attack and optimizer: what a tuning step needs."""

    def __init__(self, clip, attack_loss="ce", depth=2, **options) -> None:
        self.prompts = learner(clip, depth)
        self.model = PromptedCLIP(clip, NAMES, self.prompts, **options)
        self.attack = OnlinePGD(self.model, "4/255", "2/255", 2, attack_loss=attack_loss)
        self.optimizer = torch.optim.SGD(self.prompts.parameters(), lr=0.1, momentum=0.9)

    def __call__(self, images, labels, indices, draw):
        prepared = self.model.prepare()
        adv = self.attack(images, labels, indices, prepared, draw=draw).images
        clean, attacked = self.model.pair(images, adv, prepared)
        loss = 0.5 * F.cross_entropy(clean, labels) + 0.5 * F.cross_entropy(attacked, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return adv, loss.detach()


def epoch(draw: int):
    generator = torch.Generator().manual_seed(11)
    first = 0
    for n in BATCHES:
        images = torch.rand(n, 3, 48, 48, generator=generator, dtype=torch.float64)
        labels = torch.randint(len(NAMES), (n,), generator=generator)
        yield images, labels, torch.arange(first, first + n), draw
        first += n


def assert_same_step(compiled: Step, plain: Step, batch) -> None:
    """Images, loss and what is learned."""
    (adv, loss), (wanted_adv, wanted_loss) = compiled(*batch), plain(*batch)
    assert relative(adv, wanted_adv) <= EXACT
    assert relative(loss, wanted_loss) <= EXACT
    wanted = dict(plain.prompts.named_parameters())
    for name, p in compiled.prompts.named_parameters():
        assert relative(p, wanted[name]) <= EXACT, name


@pytest.mark.parametrize("padding", [False, True], ids=["any_size", "one_size"])
def test_a_tuning_step_is_compiled_seldom_and_changes_nothing(traced, padding):
    clip = tiny_clip(3, 3)
    compiled, plain = (Step(clip, depth=3, compile=on) for on in (True, False))
    if padding:
        compiled.model.batch = BATCHES[0]
    per_epoch, after_first = [], 0
    for number in range(2):
        for i, batch in enumerate(epoch(number)):
            assert_same_step(compiled, plain, batch)
            if number == i == 0:
                after_first = graphs()
        per_epoch.append(graphs())
    assert after_first == STEP
    # the smaller last batch: the blocks are compiled once more, for any size
    assert per_epoch[0] - after_first <= (0 if padding else STEP - 1)
    assert per_epoch[1] == per_epoch[0]
    assert not counters["graph_break"]


@pytest.mark.parametrize("layers", [3, 5])
def test_further_layers_need_no_further_graphs(traced, layers):
    clip = tiny_clip(layers, layers)
    compiled, plain = (Step(clip, depth=layers, compile=on) for on in (True, False))
    assert_same_step(compiled, plain, next(epoch(0)))
    assert graphs() == STEP
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["dlr", "mixed", "kl"])
def test_other_losses_of_the_attack_follow_compiled_logits(traced, name):
    clip = tiny_clip(3, 3)
    compiled, plain = (Step(clip, name, depth=3, compile=on) for on in (True, False))
    assert_same_step(compiled, plain, next(epoch(0)))
    # the clean images' features have no gradient
    assert graphs() == STEP + (0 if name == "dlr" else 2)
    assert not counters["graph_break"]


def test_nap_compiles_few_graphs(traced):
    """Of the first block and of the others, in each of four uses; the text."""
    clip = tiny_clip(3, 3)
    generator = torch.Generator().manual_seed(2)

    def data(n: int) -> ImageTensors:
        pixels = torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
        return ImageTensors(pixels, torch.arange(n) % len(NAMES))

    settings = {"epochs": 2, "n_ctx": 2, "steps": 2, "batch": 4, "augment": False}
    tuner = NAPTuner(clip, NAMES, settings, compile=True)
    tuner.fit(data(7), data(6), progress=False)
    # the first epoch's clean images, the pairs of images, the attack, and validation
    assert graphs() == 1 + 2 * 4
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_step_through_the_compilers_autograd(aot_eager):
    clip = tiny_clip(2, 2)
    steps = [Step(clip, compile=compiled) for compiled in (True, False)]
    assert_same_step(*steps, next(epoch(0)))


@pytest.mark.slow
def test_advpt_compiled_equals_advpt(aot_eager):
    """On one layer of each tower: what is compiled here is the tuner's use of the towers."""
    clip = tiny_clip(1, 1)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (7, 3, 48, 48), generator=generator, dtype=torch.uint8)
    data = ImageTensors(pixels, torch.arange(7) % len(NAMES))

    def fit(**options):
        settings = {"epochs": 3, "n_ctx": 2, "steps": 2, "batch": 4, "attack_batch": 4, "lr": 0.1}
        tuner = AdvPTTuner(clip, NAMES, settings, **options)
        return tuner.fit(data, progress=False)

    plain, before = fit(compile=False), graphs()
    compiled = fit(compile=True)
    assert before == 0
    assert graphs() > 0
    assert not counters["graph_break"]
    (features, labels), (wanted, same) = compiled._banks["train"], plain._banks["train"]
    assert torch.equal(labels, same)
    assert relative(features, wanted) <= EXACT
    assert relative(compiled.prompts.tokens, plain.prompts.tokens) <= EXACT
    start = AdvPTTuner(clip, NAMES, n_ctx=2).prompts.tokens
    assert relative(start, plain.prompts.tokens) > 1e-2  # it has learned


@pytest.mark.slow
def test_one_process_may_tune_on_many_class_lists(traced):
    """Each list is a graph of its own; the compiler's limit is eight of one function."""
    clip, words = tiny_clip(1, 1), [f"thing {letter}" for letter in "abcdefghijk"]
    for n in range(2, len(words) + 1):
        model = PromptedCLIP(clip, words[:n], TextContext(2, 24).double(), compile=True)
        assert model.class_features().shape == (n, 16)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_class_features_through_the_real_backend():
    clip = tiny_clip(1, 1)
    torch._dynamo.reset()
    counters.clear()
    prompts = TextContext(2, 24, seed=1).to(clip.dtype)
    results = []
    for compiled in (True, False):
        model = PromptedCLIP(clip, NAMES, prompts, compile=compiled)
        features = model.class_features()
        weight = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
        (grad,) = torch.autograd.grad((features * weight).sum(), prompts.tokens)
        results.append((features, grad))
    assert graphs() == 1
    torch._dynamo.reset()
    (features, grad), (wanted, wanted_grad) = results
    assert wanted_grad.norm() > 1e-6
    assert relative(features, wanted) <= EXACT
    assert relative(grad, wanted_grad) <= EXACT
