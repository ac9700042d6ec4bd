"""The gate stops what differs; rungs get their own seconds, by turns; FLOPs are counted."""

import pytest
import torch

from benchmarks.common import machine, timing


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
