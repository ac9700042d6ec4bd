"""An attack in one CUDA graph: when it is captured, what a replay reads, what falls back."""

import logging
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt.attacks.ascent import Clamp
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.deep import DeepPrompts
from fastprompt.tuning import cuda_graph as capture
from fastprompt.tuning.attack_loss import AttackLoss
from fastprompt.tuning.cuda_graph import CapturedAscent
from fastprompt.tuning.online_pgd import OnlinePGD

LOGGER = "fastprompt.tuning.cuda_graph"
SETTINGS = {"alpha": 0.02, "eps": 0.05, "steps": 3}


def loss_of(images, weight, bias=None):
    logits = images.flatten(1) @ weight
    return (logits if bias is None else logits + bias).tanh().sum()


def case(n: int = 3, seed: int = 0, bias: bool = False):
    """Images, where the ascent starts, and what the loss takes behind them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 4, 4, generator=generator)
    start = (x + 0.1 * (torch.rand(x.shape, generator=generator) - 0.5)).clamp(0, 1)
    weight = torch.randn(48, 5, generator=generator)
    return x, start, weight, torch.randn(5, generator=generator) if bias else None


def eager(given, **settings):
    return CapturedAscent(loss_of, **SETTINGS | settings, capture=False)(*given)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- step by step ---------------------------------------------------------------------------


def test_on_the_cpu_it_runs_step_by_step_and_says_nothing(caplog):
    ascent = CapturedAscent(loss_of, **SETTINGS)
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        results = [ascent(*case(seed=seed)) for seed in (0, 1)]
    assert ascent.obstacle(case()[0]) == "the images are on cpu"
    assert ascent.failure == ""  # elsewhere it may still be captured
    assert caplog.records == []
    assert same(results[0], eager(case(seed=0)))
    assert same(results[1], eager(case(seed=1)))
    assert not torch.equal(results[0][0], case(seed=0)[1])


def test_not_asked_for_it_is_never_tried(monkeypatch, caplog):
    def refuse(*_):
        raise AssertionError("captured although not asked for")

    monkeypatch.setattr(capture, "_Graph", refuse)
    ascent = CapturedAscent(loss_of, **SETTINGS, capture=False)
    ascent(*case())
    assert ascent.obstacle(case()[0]) == "not asked for"
    assert caplog.records == []


@pytest.fixture
def no_obstacle(monkeypatch):
    monkeypatch.setattr(CapturedAscent, "obstacle", lambda self, x: self.failure)
    monkeypatch.setattr(torch.cuda, "device", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_a_capture_that_fails_is_told_once_and_not_tried_again(no_obstacle, monkeypatch, caplog):
    tried = []

    def failing(*_):
        tried.append(1)
        raise RuntimeError("CUDA error:\n  operation not permitted")

    monkeypatch.setattr(capture, "_Graph", failing)
    ascent = CapturedAscent(loss_of, **SETTINGS)
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        for seed in (0, 1, 2):
            assert same(ascent(*case(n=3 + seed, seed=seed)), eager(case(n=3 + seed, seed=seed)))
    assert len(tried) == 1
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.WARNING)
    assert "operation not permitted" in record.getMessage()
    assert ascent.failure == "CUDA error: operation not permitted"
    assert record.exc_info is not None


def test_a_failed_capture_names_the_first_error_too(no_obstacle, monkeypatch, caplog):
    def failing(*_):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("capture invalidated")  # as the end of a capture does

    monkeypatch.setattr(capture, "_Graph", failing)
    ascent = CapturedAscent(loss_of, **SETTINGS)
    assert same(ascent(*case()), eager(case()))
    wanted = "capture invalidated, after: operation not permitted when stream is capturing"
    assert ascent.failure == wanted
    assert caplog.text.count("in failing") == 2  # the traceback of both


@pytest.mark.parametrize("at_the_end", [False, True], ids=["raised", "hidden_by_the_end"])
def test_after_running_out_of_memory_it_is_tried_again(recorder, monkeypatch, caplog, at_the_end):
    real, tried = capture._Graph, []

    def full(*given):
        tried.append(1)
        if len(tried) in (2, 3):
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                if at_the_end:
                    raise RuntimeError("capture invalidated")
        return real(*given)

    monkeypatch.setattr(capture, "_Graph", full)
    ascent = CapturedAscent(loss_of, **SETTINGS)
    counts = []
    for n in (3, 4, 4, 4, 4, 4, 4, 3):
        assert same(ascent(*case(n)), eager(case(n)))
        counts.append(len(tried))
    # one attack without a capture, then two, then a capture
    assert counts == [1, 2, 2, 3, 3, 3, 4, 5]
    assert ascent.failure == ""
    assert len(ascent._graphs) == 2
    assert "the next 2 attacks run step by step" in caplog.text


def test_our_own_mistakes_are_not_hidden(no_obstacle, monkeypatch):
    def failing(*_):
        raise TypeError("ours")

    monkeypatch.setattr(capture, "_Graph", failing)
    with pytest.raises(TypeError, match="ours"):
        CapturedAscent(loss_of, **SETTINGS)(*case())


def test_what_stands_in_the_way_now_may_be_gone_later(monkeypatch):
    class OnAGPU:
        device = torch.device("cuda")

        def __init__(self, n: int) -> None:
            self.n = n

        def __len__(self) -> int:
            return self.n

    ascent = CapturedAscent(loss_of, **SETTINGS)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert ascent.obstacle(OnAGPU(1)) == "another capture is under way"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert ascent.obstacle(OnAGPU(0)) == "there are no images"
    assert ascent.obstacle(torch.empty(2, device="meta")) == "the images are on meta"
    assert ascent.obstacle(OnAGPU(1)) == ""


# ---- captured, on a stand-in for CUDA -------------------------------------------------------


class Stream:
    def wait_stream(self, other) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


class Recorder:
    """A stand-in for CUDA graphs on the CPU: a replay runs on the buffers, into the same output.

    As in torch's allocator, a pool is freed with its last graph; then its handle is refused.
    """

    def __init__(self, monkeypatch) -> None:
        self.captured, self.replayed = [], 0
        self.uses: dict[object, int] = {}  # graphs of each pool
        real, recorder = capture._Graph, self

        class Graph:
            pool: object = None

            def __del__(self) -> None:
                if self.pool is not None:
                    recorder.uses[self.pool] -= 1

            def replay(self) -> None:
                recorder.replayed += 1
                for out, new in zip(self.out, self.function(), strict=True):
                    out.copy_(new)

        class OnCPU(real):
            def __init__(self, function, given, pool) -> None:
                recorder.captured.append(tuple(None if t is None else t.shape for t in given))
                super().__init__(function, given, pool)
                buffers = self.buffers  # not `self`, which would keep itself alive
                self.graph.out, self.graph.function = self.out, lambda: function(*buffers)
                for t in self.out:  # a capture records, it does not compute
                    t.fill_(-1)

        monkeypatch.setattr(capture, "_Graph", OnCPU)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
        monkeypatch.setattr(torch.cuda, "graph", self.begin)

    def begin(self, graph, *, pool, capture_error_mode):
        if self.uses.get(pool) == 0:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.uses[pool] = self.uses.get(pool, 0) + 1
        graph.pool = pool
        return Stream()


@pytest.fixture
def recorder(no_obstacle, monkeypatch):
    return Recorder(monkeypatch)


@pytest.mark.parametrize("bias", [False, True], ids=["None_input", "all_inputs"])
def test_a_replay_follows_its_inputs(recorder, bias):
    ascent = CapturedAscent(loss_of, **SETTINGS)
    for seed in (0, 1, 0, 2):
        given = case(seed=seed, bias=bias)
        before = [None if t is None else t.clone() for t in given]
        assert same(ascent(*given), eager(given))
        assert all(t is None or torch.equal(t, b) for t, b in zip(given, before, strict=True))
    assert len(recorder.captured) == 1
    assert recorder.replayed == 4
    # each input alone
    kept = list(case(seed=0, bias=bias))
    for i, other in enumerate(case(seed=3, bias=bias)):
        if other is not None:
            given = [*kept[:i], other, *kept[i + 1 :]]
            assert same(ascent(*given), eager(given))
    assert len(recorder.captured) == 1


def test_results_outlive_the_next_replay(recorder):
    ascent = CapturedAscent(loss_of, **SETTINGS)
    first = ascent(*case(seed=0))
    ascent(*case(seed=1))
    assert same(first, eager(case(seed=0)))


def test_one_capture_a_shape_and_no_more_kept_than_there_are_places(recorder):
    ascent = CapturedAscent(loss_of, **SETTINGS)
    sizes = [8, 3, 8, 3, 5]
    for n in sizes:
        assert same(ascent(*case(n)), eager(case(n)))
    assert len(recorder.captured) == 3
    assert recorder.replayed == len(sizes)
    for n in range(10, 10 + capture._SHAPES):
        ascent(*case(n))
        assert len(ascent._graphs) <= capture._SHAPES
    assert len(ascent._graphs) == capture._SHAPES
    captured = len(recorder.captured)
    ascent(*case(10)), ascent(*case(13))
    assert len(recorder.captured) == captured  # the latest are kept
    assert same(ascent(*case(8)), eager(case(8)))
    assert len(recorder.captured) == captured + 1  # the oldest had to go


def test_what_moved_in_memory_is_captured_anew(recorder):
    x, start, weight, _ = case()
    held = [weight.clone()]

    def reading(images):
        return loss_of(images, held[0])

    ascent = CapturedAscent(reading, lambda: held, **SETTINGS)
    for _ in range(2):
        assert same(ascent(x, start), eager((x, start, held[0])))
        held[0].mul_(-2)  # in place: the graph reads what is there
    assert len(recorder.captured) == 1
    before = held[0]
    for captured in (2, 3):
        held[0] = before.clone() * captured
        assert same(ascent(x, start), eager((x, start, held[0])))
        assert len(recorder.captured) == captured
    assert ascent.failure == ""  # the allocator refuses the handle of a pool that it has freed
    assert list(recorder.uses.values()) == [0, 0, 1]


def test_inputs_and_dtypes_are_part_of_the_shape(recorder):
    ascent = CapturedAscent(loss_of, **SETTINGS)
    cases = [case(), case(bias=True), tuple(t.double() for t in case(bias=True))]
    for given in [*cases, *cases]:
        assert same(ascent(*given), eager(given))
    assert len(recorder.captured) == len(cases)


def test_a_replay_follows_inputs_inside_tuples(recorder):
    def nested(images, pair):
        weight, (bias,) = pair
        return loss_of(images, weight, bias)

    ascent = CapturedAscent(nested, **SETTINGS)
    for seed in (0, 1, 0):
        x, start, weight, bias = given = case(seed=seed, bias=True)
        assert same(ascent(x, start, (weight, (bias,))), eager(given))
    assert len(recorder.captured) == 1


# ---- each image's own radius ----------------------------------------------------------------


def radii(n: int = 3, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.rand(n, generator=torch.Generator().manual_seed(seed))


def with_radii(given, radius, **settings):
    return CapturedAscent(loss_of, **SETTINGS | settings, capture=False)(*given, radius=radius)


def test_radii_are_those_attacks_one_by_one():
    given = tuple(t if t is None else t.double() for t in case())
    radius = radii().double()
    adv, counts = with_radii(given, radius)
    x, start, weight, _ = given
    for i, eps in enumerate(radius.tolist()):
        own = (x[i : i + 1], start[i : i + 1], weight, None)
        alone, its_counts = eager(own, eps=eps, alpha=0.02 * eps / 0.05)
        assert (adv[i] - alone[0]).abs().max() <= 1e-12
        assert torch.equal(counts[i], its_counts[0])
    assert ((adv - x).abs().amax(dim=(1, 2, 3)) <= radius + 1e-12).all()


def test_with_an_eps_of_zero_the_radii_alone_count():
    given = case()
    adv, _ = with_radii(given, torch.zeros(3), eps=0.0)
    assert torch.equal(adv, given[0])


def test_a_replay_follows_its_radii(recorder):
    ascent, given = CapturedAscent(loss_of, **SETTINGS), case()
    for seed in (0, 1, 0):
        radius = radii(seed=seed)
        assert same(ascent(*given, radius=radius), with_radii(given, radius))
        assert torch.equal(radius, radii(seed=seed))
    assert len(recorder.captured) == 1
    assert recorder.replayed == 3
    # with radii and without are two graphs, which do not get mixed up
    assert same(ascent(*given), eager(given))
    assert len(recorder.captured) == 2
    assert same(ascent(*given, radius=radii()), with_radii(given, radii()))
    assert same(ascent(*given), eager(given))
    assert len(recorder.captured) == 2


# ---- an attack on prompts -------------------------------------------------------------------


NAMES = ["cat", "dog", "red fish"]


def prompted(clip, device: str = "cpu", names=NAMES) -> PromptedCLIP:
    """Prompts and refiners, none at its start value."""
    prompts = DeepPrompts(2, 3, 24, 32, refiners=1, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in prompts.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return PromptedCLIP(clip, names, prompts.to(device), precision="fp32")


def batch(device: str = "cpu", n: int = 4):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, 3, 48, 48, generator=generator)
    return x.to(device), torch.arange(n, device=device) % 3, torch.arange(n, device=device)


def tune(model: PromptedCLIP, x, y, optimizer) -> None:
    """One optimizer step, far enough to change an attack."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def check_an_attack_follows_the_prompts(model: PromptedCLIP, captures, device: str = "cpu"):
    x, y, indices = batch(device)
    attack = OnlinePGD(model, "8/255", "2/255", 3)
    plain = OnlinePGD(model, "8/255", "2/255", 3, capture=False)
    optimizer = torch.optim.SGD(model.prompts.parameters(), lr=1.0)
    seen = []
    for _ in range(3):
        ours, theirs = (a(x, y, indices, draw=0) for a in (attack, plain))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.health.zero, theirs.health.zero)
        seen.append(ours.images)
        tune(model, x, y, optimizer)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    # the refiners alone, which the loss reads by itself
    with torch.no_grad():
        for p in model.prompts.refiners.parameters():
            p += 0.2
    ours, theirs = (a(x, y, indices, draw=0) for a in (attack, plain))
    assert torch.equal(ours.images, theirs.images)
    assert not torch.equal(ours.images, seen[2])
    # two replays with different starts
    assert not torch.equal(attack(x, y, indices, draw=1).images, ours.images)
    assert captures(attack) == 1


def test_a_captured_attack_follows_the_prompts(recorder, small_clip):
    model = prompted(small_clip)
    check_an_attack_follows_the_prompts(model, lambda attack: len(recorder.captured))
    assert all(p.requires_grad for p in model.prompts.parameters())


def test_a_smaller_batch_uses_the_graph_of_the_tuners_batches(recorder):
    clip = load_clip(small_model().double())
    prompts = DeepPrompts(2, 3, 24, 32, refiners=1, refiner_start="linear", seed=2).double()
    model = PromptedCLIP(clip, ["cat", "dog", "red fish"], prompts)
    model.batch = 4
    attack = OnlinePGD(model, "8/255", "2/255", 3)
    plain = OnlinePGD(model, "8/255", "2/255", 3, capture=False)
    for n in (4, 3, 1, 4):
        x, y, indices = batch(n=n)
        radius = torch.full((n,), 4 / 255).double()
        ours, theirs = (a(x.double(), y, indices, radius=radius) for a in (attack, plain))
        torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-12)
        assert torch.equal(ours.health.zero, theirs.health.zero)
    assert len(recorder.captured) == 1


def check_other_losses_are_captured(model: PromptedCLIP, name, captures, device: str = "cpu"):
    """The labels, targets, kinds and clean logits of a replay are those of its call."""
    attack, plain = (
        OnlinePGD(model, "8/255", "2/255", 3, attack_loss=name, capture=c) for c in (True, False)
    )
    x, y, indices = batch(device)
    for labels, rows, draw in ((y, indices, 0), (y, indices + 9, 1), (2 - y, indices, 0)):
        ours, theirs = (a(x, labels, rows, draw=draw) for a in (attack, plain))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.health.zero, theirs.health.zero)
    assert captures(attack) == 1


OTHERS = pytest.mark.parametrize("name", [name for name in get_args(AttackLoss) if name != "ce"])


@OTHERS
def test_other_losses_are_captured(recorder, small_clip, name):
    model = prompted(small_clip, names=[*NAMES, "tree", "car"])
    check_other_losses_are_captured(model, name, lambda attack: len(recorder.captured))


@pytest.mark.gpu
@OTHERS
def test_other_losses_are_captured_on_a_gpu(name):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        clip = load_clip(small_model(), device="cuda")
        model = prompted(clip, "cuda", [*NAMES, "tree", "car"])
        check_other_losses_are_captured(model, name, lambda a: len(a._ascent._graphs), "cuda")


def test_the_tensors_that_an_attack_reads_are_searched_once(monkeypatch):
    model, walks = prompted(load_clip(small_model())), []
    real = torch.nn.Module.named_modules

    def counted(self, *args, **kwargs):
        walks.append(type(self).__name__)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
    reads = model.attack_reads()
    assert walks
    walks.clear()
    assert model.attack_reads() is reads
    assert not walks
    assert {id(p) for p in model.prompts.refiners.parameters()} <= {id(t) for t in reads}
    model.double()
    assert model.attack_reads() is not reads
    assert model.attack_reads()[0].dtype == torch.float64


# ---- on a GPU -------------------------------------------------------------------------------


@pytest.fixture
def cuda_model():
    # one deterministic attention: flash attention's backward adds up in any order
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield prompted(load_clip(small_model(), device="cuda"), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("clamp", get_args(Clamp))
def test_captured_equals_eager_bit_for_bit(cuda_model, caplog, clamp):
    x, y, indices = batch("cuda", 8)
    options = {"eps": "8/255", "alpha": "2/255", "steps": 5, "clamp": clamp}
    attack, plain = (OnlinePGD(cuda_model, **options, capture=c) for c in (True, False))
    for n in (8, 3, 8, 3):
        for draw in (0, 1):
            given = x[:n], y[:n], indices[:n]
            ours, theirs = (a(*given, draw=draw) for a in (attack, plain))
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.health.zero, theirs.health.zero)
            assert torch.equal(ours.health.nonfinite, theirs.health.nonfinite)
    assert attack._ascent.failure == ""
    assert len(attack._ascent._graphs) == 2
    assert plain._ascent._graphs == {}
    assert caplog.records == []


@pytest.mark.gpu
def test_captured_radii_equal_eager_ones(cuda_model):
    x, y, indices = batch("cuda", 8)
    attack, plain = (OnlinePGD(cuda_model, 0.05, 0.02, 3, capture=c) for c in (True, False))
    for seed in (0, 1):
        radius = radii(8, seed).cuda()
        ours, theirs = (a(x, y, indices, radius=radius) for a in (attack, plain))
        assert torch.equal(ours.images, theirs.images)
        assert ((ours.images - x).abs().amax(dim=(1, 2, 3)) <= radius + 1e-7).all()
    assert attack._ascent.failure == ""
    assert len(attack._ascent._graphs) == 1


@pytest.mark.gpu
def test_replays_with_other_starts_differ(cuda_model):
    x, y, indices = batch("cuda")
    attack = OnlinePGD(cuda_model, "8/255", "2/255", 2)
    draws = [attack(x, y, indices, draw=draw).images for draw in (0, 1, 0)]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    assert len(attack._ascent._graphs) == 1


@pytest.mark.gpu
def test_a_replay_sees_what_the_optimizer_changed(cuda_model):
    check_an_attack_follows_the_prompts(
        cuda_model, lambda attack: len(attack._ascent._graphs), "cuda"
    )


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device(cuda_model):
    x, y, indices = batch("cuda")
    attack = OnlinePGD(cuda_model, "8/255", "2/255", 3)

    def step():
        prepared = cuda_model.prepare()
        adv = attack(x, y, indices, prepared).images
        clean, attacked = cuda_model.pair(x, adv, prepared)
        (clean.logsumexp(1) + attacked.logsumexp(1)).sum().backward()

    step()  # a capture waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
