"""The benchmarks measure what they say, and the committed figures keep what was promised."""

import json
from functools import partial
from operator import mul
from pathlib import Path

import pytest
import torch
from conftest import small_model

from benchmarks import machine, models, rungs, text, timing
from fastprompt import DeepPrompts, load_clip

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu-2-cores"
NAMES = ["cat", "small dog", "a long name indeed", "fish", "red circle"]


@pytest.fixture(scope="module")
def step_rungs():
    clip = load_clip(small_model())
    prompts = DeepPrompts.for_clip(clip, 4)
    return rungs.make_rungs(clip, NAMES, prompts, rungs.random_batch(3, 48, len(NAMES)))


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


def test_step_rungs_agree(step_rungs):
    found = timing.gate(rungs.gate_results(step_rungs))
    assert set(found) == {"eager-hoisted", "fastprompt"}
    for differences in found.values():
        assert {"loss", "first attack gradient", "gradient of tokens"} <= set(differences)


def test_step_rungs_run_the_text_encoder_5_1_and_1_times(step_rungs):
    counts = {}
    for name, rung in step_rungs.items():
        with rungs.counting_text(rung) as count:
            rung.step()
        counts[name] = dict(count)
    one = len(NAMES) * 77
    assert counts["eager"] == {"forwards": 5, "tokens": 5 * one}
    assert counts["eager-hoisted"] == {"forwards": 1, "tokens": one}
    assert counts["fastprompt"]["forwards"] == 1
    assert counts["fastprompt"]["tokens"] < one / 5


def test_step_rungs_attack_alike(step_rungs):
    attacks = {name: rung.attack(rung.prepare()) for name, rung in step_rungs.items()}
    start, images = step_rungs["eager"].batch.start, step_rungs["eager"].batch.images
    for adv in attacks.values():
        # signs turn where a gradient is rounding; a step differs there
        assert ((adv - attacks["eager"]).abs() > 1e-6).float().mean() < 1e-2
        assert (adv - images).abs().max() <= 4 / 255 + 1e-6
        assert (adv - start).abs().mean() > 1 / 255


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


def test_step_results_keep_what_was_promised():
    result = committed("step.json")
    settings = {"classes": 100, "batch": 8, "steps": 3, "n_ctx": 16, "depth": 12}
    assert settings.items() <= result["settings"].items()
    assert result["freed_memory_kept"]
    assert [result["text"][name]["forwards"] for name in rungs.RUNGS] == [5, 1, 1]
    assert result["ratios"]["eager/fastprompt"]["medians"] >= 6
    assert result["ratios"]["eager-hoisted/fastprompt"]["medians"] >= 1.8
