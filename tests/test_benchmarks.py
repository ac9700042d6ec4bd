"""The benchmarks measure what they say, and the committed figures keep what was promised."""

import json
from functools import partial
from operator import mul
from pathlib import Path

import pytest
import torch
from conftest import small_model

from benchmarks import machine, models, text, timing
from benchmarks.clips import CLIPS
from benchmarks.ladder_file import FILE, by_group, read
from benchmarks.tuner_steps import agreement, counting_text, random_images, tuner_steps
from fastprompt import load_clip

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu-2-cores"
NAMES = ["cat", "small dog", "a long name indeed", "fish", "red circle"]


RUNGS = [rung for rung in CLIPS if rung != "compiled"]
METHODS = {"nap": {}, "capt": {}, "apt": {}, "ampt": {"n_prompts": 2}}


def steps_of(method, **settings):
    clip = load_clip(small_model())
    data = random_images(3, 48, len(NAMES))
    return tuner_steps(RUNGS, method, clip, NAMES, data, n_ctx=4, steps=3, **settings)


@pytest.fixture(scope="module")
def nap_steps():
    return steps_of("nap")


# the gate


def test_the_gate_tells_how_far_rungs_are_apart():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found = timing.gate({"eager": {"y": x}, "ours": {"y": x * (1 + 1e-5)}})
    assert found["ours"]["y"] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize(
    "other",
    [
        {"y": torch.full((3,), 1.001)},
        {"y": torch.full((3,), float("nan"))},
        {"y": torch.ones(4)},
        {"z": torch.ones(3)},
        {},
    ],
    ids=["off", "nan", "shape", "name", "nothing"],
)
def test_the_gate_stops_a_wrong_rung(other):
    with pytest.raises(timing.RungsDifferError, match="ours"):
        timing.gate({"eager": {"y": torch.ones(3)}, "ours": other})


def test_the_gate_takes_no_zeros_for_agreement():
    zeros = {"y": torch.zeros(3)}
    with pytest.raises(timing.RungsDifferError, match="nan"):
        timing.gate({"eager": zeros, "ours": zeros})


def test_the_gate_stops_a_text_tower_with_one_weight_changed():
    clip, other = load_clip(small_model()), load_clip(small_model())
    with torch.no_grad():
        other.text_parts.transformer.resblocks[1].mlp.c_fc.weight[0] *= 2
    right = text.Rung("eager", clip, NAMES, 4)
    assert timing.gate({"eager": right(), "ours": text.Rung("fastprompt", clip, NAMES, 4)()})
    wrong = text.Rung("fastprompt", other, NAMES, 4)
    with pytest.raises(timing.RungsDifferError):
        timing.gate({"eager": right(), "ours": wrong()})


# time, work, memory


def test_by_turns_gives_each_rung_its_own_seconds():
    now, order = [0.0], []

    def rung(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds.pop(0)

        return run

    functions = {"a": rung("a", [50, 1, 2, 9]), "b": rung("b", [50, 10, 20, 30])}
    timings = timing.by_turns(functions, rounds=3, warmup=1, clock=lambda: now[0])
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert timings["a"].seconds == (1, 2, 9)
    assert timings["a"].as_dict() == {"median": 2, "lower": 1.5, "upper": 5.5, "rounds": 3}
    found = timing.ratio(timings, "b", "a")
    assert found == {"medians": 10, "least": pytest.approx(30 / 9), "most": 10}
    assert timing.by_turns({"once": lambda: None}, rounds=1)["once"].as_dict()["rounds"] == 1


def test_a_long_rung_takes_part_in_the_first_round_alone():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in ("long", "a", "b")}
    timings = timing.by_turns(functions, rounds=2, warmup=0, once=("long",))
    assert order == ["long", "a", "b", "a", "b"]
    assert [len(timings[name].seconds) for name in functions] == [1, 2, 2]
    seconds = {"long": timing.Timing((8.0,)), "a": timing.Timing((1.0, 2.0, 4.0))}
    assert timing.ratio(seconds, "long", "a") == {"medians": 4, "least": 2, "most": 8}


def test_flops_are_counted_forward_and_backward():
    x = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(7, 8)
    gemm = machine.Gemm(rows=5, inputs=8, outputs=7)

    def run():
        torch.autograd.grad((x @ weight.T).sum(), x)

    assert timing.count_flops(run) == gemm.flops == 2 * 2 * 5 * 8 * 7


def test_the_bare_products_are_the_work_that_they_are_divided_by():
    gemms = machine.layer_gemms(tokens=6, width=8)
    flops = sum(g.flops for g in gemms)
    assert flops == 2 * 2 * 6 * 12 * 8 * 8
    assert timing.count_flops(machine.gemm_pass(gemms)) == flops


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_sees_what_was_allocated_and_freed_again(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))  # the child takes the path over
    # in bytes, whose pages are written at once; a few pages of the start may have been given back
    size = machine.in_child(machine.peak_memory, partial(mul, b"x", 64 << 20))
    assert 63 << 20 <= size < 72 << 20


def test_facts_name_the_machine():
    facts = machine.facts()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["processor"]


# names


@pytest.mark.parametrize("n", [1, 200, 21_000])
def test_names_are_distinct_and_short_and_the_same_each_time(n):
    names = models.class_names(n)
    assert names == models.class_names(n)
    assert len(set(names)) == len(names) == n
    assert {len(name.split()) for name in names} <= {1, 2, 3, 4}


# rungs


@pytest.mark.parametrize("method", METHODS)
def test_rungs_of_a_step_agree(method):
    found = timing.gate(agreement(steps_of(method, **METHODS[method])))
    assert set(found) == set(RUNGS[1:])
    for differences in found.values():
        assert {"loss", "first attack gradient"} < set(differences)


def test_a_rung_with_one_weight_changed_is_stopped():
    steps = steps_of("apt")
    with torch.no_grad():
        steps["eager-careful"].tuner.model.text.parts.ln_final.weight[0] *= 2
    results = agreement(steps_of("apt")) | {"changed": agreement(steps)["eager-careful"]}
    with pytest.raises(timing.RungsDifferError, match="changed"):
        timing.gate(results)


def test_rungs_run_the_text_encoder_5_1_1_and_1_times(nap_steps):
    """NAP, PGD-3: clean and adversarial images, and three steps of the attack."""
    counts = {}
    for name, step in nap_steps.items():
        with counting_text(step.tuner.model) as count:
            step()
        counts[name] = dict(count)
    one = len(NAMES) * 77
    assert counts["eager"] == {"forwards": 5, "tokens": 5 * one}
    assert counts["eager-hoisted"] == {"forwards": 1, "tokens": one}
    assert counts["eager-careful"]["forwards"] == 1
    assert counts["eager-careful"]["tokens"] < one / 4
    assert counts["fastprompt"]["forwards"] == 1
    assert counts["fastprompt"]["tokens"] < counts["eager-careful"]["tokens"] / 2


def test_rungs_attack_alike(nap_steps):
    found = {name: step.begin() for name, step in nap_steps.items()}
    images, eager = found["eager"].images, found["eager"].adv
    for step in found.values():
        # signs turn where a gradient is rounding; a step differs there
        assert ((step.adv - eager).abs() > 1e-6).float().mean() < 1e-2
        assert (step.adv - images).abs().max() <= 4 / 255 + 1e-6
        assert (step.adv - images).abs().mean() > 1 / 255


def test_flops_of_a_step_without_computing_it_are_those_of_the_real_one(nap_steps):
    for name, step in nap_steps.items():
        step()
        real = timing.count_flops(step)
        # the fast one's attention over the prefix is not seen without values
        assert step.flops() == pytest.approx(real, rel=0.01 if name == "fastprompt" else 0), name


def test_counting_first_leaves_nothing_without_values_behind():
    first, second = steps_of("nap"), steps_of("nap")
    for name, step in first.items():
        step.flops()
        assert torch.equal(step(), second[name]())


# the committed files


def committed(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def test_text_results_keep_what_was_promised():
    result = committed("text.json")
    assert result["settings"]["classes"] == 200
    assert result["freed_memory_kept"]
    assert result["ratios"]["eager/fastprompt"]["medians"] >= 14
    assert result["memory"]["ratio"] >= 8
    assert result["matmul_share"]["eager"] >= 0.7
    assert result["many_classes"]["classes"] == 21_000
    assert result["many_classes"]["peak_bytes"] < 4 << 30


PROMISED = {
    # group: over eager, over eager-hoisted, over eager-careful
    "towers/text/c200": (14, 0, 0),
    "step/nap/c100": (6, 1.8, 1.1),
    "step/capt/c100": (6, 1.8, 1.1),
    "step/ampt/c25-k4": (6, 0, 0),
    "step/advpt-phase-2/c100": (12, 0, 0),
    "kernels/mixture_logits-fwd-bwd/b128-c1000-k8": (5, 0, 0),
}


@pytest.mark.parametrize("group", PROMISED)
def test_the_ladder_keeps_what_was_promised(group):
    rows = by_group(read(RESULTS / FILE))[group]
    ours = rows["fastprompt"]
    for least, rung in zip(
        PROMISED[group], ("eager", "eager-hoisted", "eager-careful"), strict=True
    ):
        if least:
            assert rows[rung].median / ours.median >= least
    assert ours.ceiling
    assert ours.machine["freed_memory_kept"]
