"""The ladder: groups are gated, timed by turns, told of, and left out by name."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bank_steps, clips, ladder, limits, models, ops, sizes, tuner_steps
from benchmarks.timing import RungsDifferError, Timing, count_flops
from fastprompt import DeepPrompts

X = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
W = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))


def group(**changes):
    def slow():
        return {"y": torch.cat([X, X]) @ W}

    def fast():
        return {"y": (X @ W).repeat(2, 1)}

    rungs = {"eager": slow, "fastprompt": fast}
    options = {"rounds": 3, "size": {"classes": 20}, **changes}
    return ladder.Group(rungs, {name: run() for name, run in rungs.items()}, **options)


def test_a_group_tells_ratio_ceiling_and_size():
    found = ladder.measure(group())
    about = {rung: found.about(rung) for rung in ("eager", "fastprompt")}
    ours = about["fastprompt"]
    assert about["eager"]["ratio_to_eager"] == about["eager"]["ceiling"] == 1
    assert ours["ceiling"] == 2  # half of the products
    assert ours["flops"] == 2 * 40 * 30 * 20
    assert ours["baseline"] == "eager"
    assert ours["classes"] == 20
    assert ours["largest_error"] < 1e-5
    medians = {name: timing.median for name, timing in found.timings.items()}
    assert ours["ratio_to_eager"] == medians["eager"] / medians["fastprompt"]
    rate = limits.multiplying(torch.float32).amount / medians[ladder.LIMIT]
    assert ours["share_of_limit"] == pytest.approx(ours["flops"] / medians["fastprompt"] / rate)
    assert ours["limit"] == "matmul"


def test_the_range_of_the_ratio_is_that_of_the_rounds():
    timings = {"eager": Timing((2.0, 6.0, 4.0)), "fastprompt": Timing((1.0, 2.0, 4.0))}
    timings[ladder.LIMIT] = Timing((1.0,))
    flops = {"eager": 8, "fastprompt": 2}
    size, limit = {"images": 6}, limits.Limit("matmul", 16, lambda: None, torch.bfloat16)
    dtypes = {"eager": torch.float32, "fastprompt": torch.bfloat16}
    found = ladder.Measured("eager", size, {}, flops, timings, {}, limit, dtypes, "1980 MHz")
    about = found.about("fastprompt")
    assert about["ratio_to_eager"] == 2
    assert (about["dtype"], about["clocks_after"]) == ("bfloat16", "1980 MHz")
    assert about["ratio_range"] == [1, 3]
    assert about["ceiling"] == 4
    assert about["images_per_second"] == 3
    assert about["share_of_limit"] == 1 / 16
    # a product in bfloat16 is no limit of what is in float32
    assert found.about("eager")["share_of_limit"] is None


def test_what_differs_is_not_timed():
    wrong = group()
    results = {**wrong.results, "fastprompt": {"y": wrong.results["eager"]["y"] * 1.001}}
    timed = []
    rungs = {"eager": lambda: timed.append(1), "fastprompt": lambda: timed.append(1)}
    with pytest.raises(RungsDifferError, match="fastprompt"):
        ladder.measure(ladder.Group(rungs, results))
    assert not timed


def test_a_rung_in_bfloat16_may_be_further_off_and_no_other():
    right = group()
    rough = {**right.results, "fastprompt": {"y": right.results["eager"]["y"] * 1.05}}
    dtypes = {"fastprompt": torch.bfloat16}
    found = ladder.Group(right.rungs, rough, dtypes=dtypes).differences()
    assert found["fastprompt"]["y"] == pytest.approx(0.05)
    with pytest.raises(RungsDifferError, match="fastprompt"):
        ladder.Group(right.rungs, rough).differences()
    with pytest.raises(RungsDifferError, match="fastprompt"):
        ladder.Group(right.rungs, rough, dtypes=dtypes, tolerance=1e-3).differences()


def test_what_a_timed_run_finds_is_looked_at():
    def check():
        raise RungsDifferError("an attack is weaker")

    with pytest.raises(RungsDifferError, match="weaker"):
        ladder.measure(group(check=check))


def test_what_differs_by_rounding_agrees_in_float64():
    right = group()
    rough = {**right.results, "fastprompt": {"y": right.results["eager"]["y"] * (1 + 1e-3)}}
    double = {name: {"y": t["y"].double()} for name, t in right.results.items()}
    asked = []

    def exact(double, off=0.0):
        asked.append(off)
        return {**double, "fastprompt": {"y": double["eager"]["y"] * (1 + off)}}

    found = ladder.Group(right.rungs, rough, exact=lambda: exact(double)).differences()
    assert found["fastprompt"]["y"] == pytest.approx(1e-3, rel=0.05)  # in the dtype that is timed
    with pytest.raises(RungsDifferError, match="above 1e-10"):
        ladder.Group(right.rungs, rough, exact=lambda: exact(double, 1e-9)).differences()
    assert asked == [0, 1e-9]
    wrong = {**right.results, "fastprompt": {"y": right.results["eager"]["y"] * 1.02}}
    with pytest.raises(RungsDifferError, match=r"above 0\.01"):
        ladder.Group(right.rungs, wrong, exact=lambda: exact(double)).differences()
    asked.clear()
    ladder.Group(right.rungs, right.results, exact=lambda: exact(double)).differences()
    assert not asked  # where float32 agrees, it is not asked for


def test_bytes_are_held_against_a_copy():
    moved = 1 << 27
    found = ladder.measure(group(moved=moved, flops=lambda _: 0))
    about = found.about("fastprompt")
    assert about["limit"] == "copy"
    assert about["ceiling"] is None
    rate = found.limit.amount / found.timings[ladder.LIMIT].median
    assert about["share_of_limit"] == pytest.approx(
        moved / found.timings["fastprompt"].median / rate
    )


def test_what_a_cache_holds_is_held_against_nothing():
    about = ladder.measure(group(moved=1 << 20)).about("fastprompt")
    assert about["limit"] is None
    assert about["share_of_limit"] is None


def test_a_group_is_measured_once(monkeypatch):
    monkeypatch.setattr(ladder, "_measured", {})
    built = []

    def build():
        built.append(1)
        return group()

    spec = ladder.Spec("layer/what/size", build, ("eager", "fastprompt"))
    assert ladder.measured(spec) is ladder.measured(spec)
    assert built == [1]


def test_an_error_is_told_to_every_rung_and_the_group_is_not_built_again(monkeypatch):
    monkeypatch.setattr(ladder, "_measured", {})
    built = []

    def build():
        built.append(1)
        raise RungsDifferError("too far apart")

    spec = ladder.Spec("layer/what/size", build, ("eager", "fastprompt"))
    for _ in spec.rungs:
        with pytest.raises(RungsDifferError, match="too far apart"):
            ladder.measured(spec)
    assert built == [1]


def test_rungs_are_left_out_by_name():
    specs = [ladder.Spec("layer/what/c9", group, ("fastprompt",), {"eager": "it takes an hour"})]
    ours, left_out = ladder.ladder(specs).args[1]
    assert (ours.id, left_out.id) == ("layer/what/c9-fastprompt", "layer/what/c9-eager")
    reasons = [mark.kwargs["reason"] for mark in left_out.marks if mark.name == "skip"]
    assert reasons == ["layer/what/c9: eager is left out: it takes an hour"]
    assert [mark.name for mark in ours.marks] == ["benchmark", "timeout"]


def test_the_clock_goes_on_when_it_is_told_to():
    clock = ladder.ReplayClock()
    clock.advance(1.5)
    clock.advance(2)
    assert clock.now() == 3.5


@pytest.mark.parametrize("name", ["FASTPROMPT_BENCH", "FASTPROMPT_BENCH_ROUNDS"])
def test_a_wrong_size_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "huge")
    with pytest.raises(ValueError, match=f"{name} must be"):
        importlib.reload(sizes)
    monkeypatch.undo()
    importlib.reload(sizes)


SMALL_OPS = {
    "mixture": lambda **how: ops.mixture(3, 5, 2, 8, **how),
    "attention": lambda **how: ops.attention(9, prefix=3, heads=2, head_width=4, **how),
    "layers": lambda **how: ops.layers(2, n_layers=2, tokens=3, width=8, **how),
    "consistency": lambda **how: ops.consistency(4, 6, **how),
}
STEPS = {
    "pgd_step": ops.sign_step,
    "apgd_step": ops.two_point_step,
    "momentum_step": ops.with_momentum,
    "random_start": ops.start,
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("op", SMALL_OPS)
def test_kernels_agree_with_their_formulas(op, backward):
    found = SMALL_OPS[op](backward=backward, compiled=False)
    ladder.gate(found.results)
    assert len(found.results["eager"]) >= 1


@pytest.mark.parametrize("op", STEPS)
def test_steps_agree_with_their_formulas(op):
    found = STEPS[op](2, image_size=8, backward=False, compiled=False)
    ladder.gate(found.results, limit=1e-6)
    assert len(found.results["eager"]) == (2 if op == "momentum_step" else 1)
    for run in found.rungs.values():
        run()


def test_an_ops_inside_is_counted():
    """Attention of 9 classes of 2 to 8 tokens behind 3: every score, masked ones too."""
    rungs = SMALL_OPS["attention"](backward=False, compiled=False).rungs
    lengths = [2 + i % 7 for i in range(9)]
    own, front = sum(n * n for n in lengths), 3 * sum(lengths)
    assert count_flops(rungs["fastprompt"]) == 2 * 2 * 2 * 4 * (own + front)
    padded = 9 * 8 * (3 + 8)
    assert count_flops(rungs["eager"]) == 2 * 2 * 2 * 4 * padded


CHOSEN = ["pgd_step", "random_start", "nap/c10-", "advpt-bank", "phase-2/c10-", "coop-loop/b8"]


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chosen", CHOSEN)
def test_on_a_gpu_a_group_tells_its_card_and_memory(chosen, tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-only", "-k", chosen]
    done = subprocess.run(
        [*command, "--benchmark-json", str(path)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "FASTPROMPT_BENCH": "small"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    rungs = [e["extra_info"] for e in json.loads(path.read_text())["benchmarks"]]
    assert rungs
    for about in rungs:
        assert about["card"] == torch.cuda.get_device_name()
        assert about["peak_bytes"] > 0
        assert about["clocks_after"]
        assert 0 < about["ratio_range"][0] <= about["ratio_range"][1]


def test_models_are_made_once_however_they_are_asked_for():
    one = models.shared_clip("tiny-shapes", "cpu")
    assert models.shared_clip("tiny-shapes", "cpu", double=False) is one
    assert models.shared_clip(name="tiny-shapes", device="cpu") is one
    double = models.shared_clip("tiny-shapes", "cpu", double=True)
    assert double is models.shared_clip("tiny-shapes", "cpu", double=True)
    assert (one.dtype, double.dtype) == (torch.float32, torch.float64)


@pytest.fixture
def uncompiled_backend(monkeypatch):
    """What would be compiled is traced whole and run as it is."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **o: compile(f, fullgraph=True, backend="eager")
    )
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_compiled_rung_is_one_graph(kind, uncompiled_backend):
    clip, names = models.shared_clip("tiny-shapes", "cpu"), ["cat", "small dog"]
    prompts = DeepPrompts.for_clip(clip, 4)
    careful, compiled = (clips.CLIPS[r](clip, names, prompts) for r in ladder.CAREFUL)
    if kind == "text":
        found = [model.class_features() for model in (careful, compiled)]
    else:
        images = torch.rand(2, 3, clip.image_size, clip.image_size)
        found = [model.image_features(images) for model in (careful, compiled)]
    torch.testing.assert_close(*found)


def test_flops_are_seen_where_code_is_compiled(uncompiled_backend):
    clip = models.shared_clip("tiny-shapes", "cpu")
    step = bank_steps.PhaseTwo("fastprompt", clip, ["cat", "small dog"], 4, 3)
    model = step.tuner.model
    with clips.step_by_step(model):
        wanted = count_flops(step)
    model.compiled = True
    step()
    with clips.step_by_step(model):
        assert not model.compiled
        assert count_flops(step) == wanted > 0
    with clips.step_by_step(model, compiled=True):
        assert model.compiled
    assert model.compiled


def test_frozen_texts_are_encoded_once_for_all_rungs(monkeypatch):
    clip = models.shared_clip("tiny-shapes", "cpu")
    encode, calls = clip._encode_tokens, []
    monkeypatch.setattr(clip, "_encode_tokens", lambda t: calls.append(len(t)) or encode(t))
    data = tuner_steps.random_images(2, clip.image_size, 2)
    rungs = ("eager", "eager-hoisted", "fastprompt")
    made = tuner_steps.tuner_steps(rungs, "capt", clip, ["cat", "fish"], data, steps=1)
    assert calls == [2]
    texts = [step.tuner.guide.text_features for step in made.values()]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
