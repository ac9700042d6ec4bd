"""A group is gated, timed by turns, told of; its rungs are left out by name."""

import pytest
import torch

from benchmarks.common import limits
from benchmarks.common.timing import RungsDifferError, Timing
from benchmarks.ladder import group as groups

X = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
W = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))


def group(**changes):
    def slow():
        return {"y": torch.cat([X, X]) @ W}

    def fast():
        return {"y": (X @ W).repeat(2, 1)}

    rungs = {"eager": slow, "fastprompt": fast}
    options = {"rounds": 3, "size": {"classes": 20}, **changes}
    return groups.Group(rungs, {name: run() for name, run in rungs.items()}, **options)


def test_a_group_tells_ratio_ceiling_and_size():
    found = groups.measure(group())
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
    rate = limits.multiplying(torch.float32).amount / medians[groups.limit_name(torch.float32)]
    assert ours["share_of_limit"] == pytest.approx(ours["flops"] / medians["fastprompt"] / rate)
    assert ours["limit"] == "matmul"


def test_the_range_of_the_ratio_is_that_of_the_rounds():
    timings = {"eager": Timing((2.0, 6.0, 4.0)), "fastprompt": Timing((1.0, 2.0, 4.0))}
    timings[groups.limit_name(torch.bfloat16)] = Timing((1.0,))
    flops = {"eager": 8, "fastprompt": 2}
    size, limit = {"images": 6}, limits.Limit("matmul", 16, lambda: None, torch.bfloat16)
    by_dtype = {torch.bfloat16: limit}
    dtypes = {"eager": torch.float32, "fastprompt": torch.bfloat16}
    found = groups.Measured("eager", size, {}, flops, timings, {}, by_dtype, dtypes, "1980 MHz")
    about = found.about("fastprompt")
    assert about["ratio_to_eager"] == 2
    assert (about["dtype"], about["clocks_after"]) == ("bfloat16", "1980 MHz")
    assert about["ratio_range"] == [1, 3]
    assert about["ceiling"] == 4
    assert about["images_per_second"] == 3
    assert about["share_of_limit"] == 1 / 16
    # a product in bfloat16 is no limit of what is in float32
    assert found.about("eager")["share_of_limit"] is None


def test_each_dtype_is_held_against_its_own_products(monkeypatch):
    def small(dtype):
        """A CPU may emulate bfloat16: products of the benchmarks' size would take minutes."""
        one = torch.ones(8, 8, dtype=dtype)
        return limits.Limit("matmul", 2 * 8**3, lambda: one @ one, dtype)

    monkeypatch.setattr(groups, "multiplying", small)
    found = groups.measure(group(dtypes={"fastprompt": torch.bfloat16}))
    for rung, dtype in (("eager", torch.float32), ("fastprompt", torch.bfloat16)):
        about = found.about(rung)
        rate = found.limits[dtype].amount / found.timings[groups.limit_name(dtype)].median
        share = about["flops"] / found.timings[rung].median / rate
        assert about["share_of_limit"] == pytest.approx(share)
        assert about["dtype"] == str(dtype).removeprefix("torch.")


def test_what_differs_is_not_timed():
    wrong = group()
    results = {**wrong.results, "fastprompt": {"y": wrong.results["eager"]["y"] * 1.001}}
    timed = []
    rungs = {"eager": lambda: timed.append(1), "fastprompt": lambda: timed.append(1)}
    with pytest.raises(RungsDifferError, match="fastprompt"):
        groups.measure(groups.Group(rungs, results))
    assert not timed


def test_a_rung_in_bfloat16_may_be_further_off_and_no_other():
    right = group()
    rough = {**right.results, "fastprompt": {"y": right.results["eager"]["y"] * 1.05}}
    dtypes = {"fastprompt": torch.bfloat16}
    found = groups.Group(right.rungs, rough, dtypes=dtypes).differences()
    assert found["fastprompt"]["y"] == pytest.approx(0.05)
    with pytest.raises(RungsDifferError, match="fastprompt"):
        groups.Group(right.rungs, rough).differences()
    with pytest.raises(RungsDifferError, match="fastprompt"):
        groups.Group(right.rungs, rough, dtypes=dtypes, tolerance=1e-3).differences()


def test_what_a_timed_run_finds_is_looked_at():
    def check():
        raise RungsDifferError("an attack is weaker")

    with pytest.raises(RungsDifferError, match="weaker"):
        groups.measure(group(check=check))


def test_what_differs_by_rounding_agrees_in_float64():
    right = group()
    rough = {**right.results, "fastprompt": {"y": right.results["eager"]["y"] * (1 + 1e-3)}}
    double = {name: {"y": t["y"].double()} for name, t in right.results.items()}
    asked = []

    def exact(double, off=0.0):
        asked.append(off)
        return {**double, "fastprompt": {"y": double["eager"]["y"] * (1 + off)}}

    found = groups.Group(right.rungs, rough, exact=lambda: exact(double)).differences()
    assert found["fastprompt"]["y"] == pytest.approx(1e-3, rel=0.05)  # in the dtype that is timed
    with pytest.raises(RungsDifferError, match=r"fastprompt.*1e-10"):
        groups.Group(right.rungs, rough, exact=lambda: exact(double, 1e-9)).differences()
    assert asked == [0, 1e-9]
    wrong = {**right.results, "fastprompt": {"y": right.results["eager"]["y"] * 1.02}}
    with pytest.raises(RungsDifferError, match=r"fastprompt.* 0\.01\b"):
        groups.Group(right.rungs, wrong, exact=lambda: exact(double)).differences()
    asked.clear()
    groups.Group(right.rungs, right.results, exact=lambda: exact(double)).differences()
    assert not asked  # where float32 agrees, it is not asked for


def test_bytes_are_held_against_a_copy():
    moved = 1 << 27
    found = groups.measure(group(moved=moved, flops=lambda _: 0))
    about = found.about("fastprompt")
    assert about["limit"] == "copy"
    assert about["ceiling"] is None
    limit = found.limits[torch.float32]
    rate = limit.amount / found.timings[groups.limit_name(torch.float32)].median
    assert about["share_of_limit"] == pytest.approx(
        moved / found.timings["fastprompt"].median / rate
    )


def test_what_a_cache_holds_is_held_against_nothing():
    about = groups.measure(group(moved=1 << 20)).about("fastprompt")
    assert about["limit"] is None
    assert about["share_of_limit"] is None


def test_a_group_is_measured_once(monkeypatch):
    monkeypatch.setattr(groups, "_measured", {})
    built = []

    def build():
        built.append(1)
        return group()

    spec = groups.Spec("layer/what/size", build, ("eager", "fastprompt"))
    assert groups.measured(spec) is groups.measured(spec)
    assert built == [1]


def test_an_error_is_told_to_every_rung_and_the_group_is_not_built_again(monkeypatch):
    monkeypatch.setattr(groups, "_measured", {})
    built = []

    def build():
        built.append(1)
        raise RungsDifferError("too far apart")

    spec = groups.Spec("layer/what/size", build, ("eager", "fastprompt"))
    for _ in spec.rungs:
        with pytest.raises(RungsDifferError, match="too far apart"):
            groups.measured(spec)
    assert built == [1]


def test_rungs_are_left_out_by_name():
    specs = [groups.Spec("layer/what/c9", group, ("fastprompt",), {"eager": "it takes an hour"})]
    ours, left_out = groups.ladder(specs).args[1]
    assert (ours.id, left_out.id) == ("layer/what/c9-fastprompt", "layer/what/c9-eager")
    reasons = [mark.kwargs["reason"] for mark in left_out.marks if mark.name == "skip"]
    assert reasons == ["layer/what/c9: eager is left out: it takes an hour"]
    assert [mark.name for mark in ours.marks] == ["benchmark", "timeout"]


def test_the_clock_goes_on_when_it_is_told_to():
    clock = groups.ReplayClock()
    clock.advance(1.5)
    clock.advance(2)
    assert clock.now() == 3.5


def test_bfloat16_may_differ_as_eager_code_under_autocast_does():
    eager = torch.ones(4)
    double = {"eager": {"y": eager.double()}}

    def found(careful, ours):
        results = {"eager": {"y": eager}, "eager-careful": {"y": eager * (1 + careful)}}
        results["fastprompt"] = {"y": eager * (1 + ours)}
        low = dict.fromkeys(("eager-careful", "fastprompt"), torch.bfloat16)
        return groups.Group({}, results, exact=lambda: double, dtypes=low).differences()

    assert found(0.2, 0.29)["fastprompt"]["y"] == pytest.approx(0.29)
    with pytest.raises(RungsDifferError, match=r"fastprompt.* 0\.3\b"):
        found(0.2, 0.31)
    with pytest.raises(RungsDifferError, match=r"fastprompt.* 0\.1\b"):
        found(0.01, 0.11)
