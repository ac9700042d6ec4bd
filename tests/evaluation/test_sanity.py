"""The checks flag defenses that only look robust, with the reason, and leave honest ones be."""

import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.planted_defenses import (
    EPS,
    HONEST,
    LABELS,
    PIXELS,
    WHERE,
    Random,
    Through,
    early,
    images,
    in_large_batches,
    other_in_the_attack,
    partly_turned,
    rounded,
    shuffled,
    squashed,
)
from torch import nn

from fastprompt import JPEG, BitDepth, Defended, GaussianSmoothing, evaluate
from fastprompt._utils import progress
from fastprompt._utils.progress import Progress
from fastprompt.data import ImageTensors
from fastprompt.data.dataset import evenly
from fastprompt.evaluation.sampling import in_turn
from fastprompt.evaluation.sanity import FULL, QUICK, check_model, check_rows, claims
from fastprompt.evaluation.sanity.sample import Sample
from fastprompt.evaluation.sanity.slopes import measured_gradient
from fastprompt.evaluation.sanity.strength import in_8_bits
from fastprompt.evaluation.sanity.verdict import Verdict


def sample(model, n=16, **options):
    return Sample(model, PIXELS[:n], LABELS[:n], torch.arange(n), EPS, **options)


def noisy(x):
    return HONEST(x + 0.05 * torch.randn_like(x))


def cold(x):
    return HONEST(x) / 1e6


def all_but_two_ruled_out(x):
    logits = HONEST(x)
    return logits.masked_fill(logits < logits.topk(2, dim=1).values[:, 1:], -torch.inf)


def neighbors(x):
    return HONEST(x) + 3 * x.mean() * torch.arange(6.0).roll(len(x))


# not falsely robust (those are in tests/hostile), but not what an attack or a reader expects
ODD = {
    noisy: ("repeatable", "outputs are random"),
    cold: ("temperature", "temperature"),
    all_but_two_ruled_out: ("finite logits", "infinite"),
    neighbors: ("batch split", "depend on its batch"),
}


@pytest.mark.parametrize("model", ODD, ids=lambda f: f.__name__)
def test_an_odd_model_is_flagged_with_its_reason(model):
    name, words = ODD[model]
    torch.manual_seed(0)
    failed = {v.check: v.reason for v in check_model(sample(model), QUICK) if v.verdict == "failed"}
    assert name in failed
    assert words in failed[name]


@pytest.mark.parametrize("depth", [QUICK, FULL], ids=["quick", "full"])
@pytest.mark.parametrize("model", [HONEST, lambda x: 30 * HONEST(x), lambda x: 0.1 * HONEST(x)])
def test_an_honest_model_raises_no_flag(model, depth):
    found = check_model(sample(model, 40), depth)
    assert [v for v in found if v.verdict == "failed"] == []
    wanted = len(depth.of_the_model) + len(depth.of_the_attack)
    assert len(found) == wanted
    assert [v.check for v in found if v.verdict == "skipped"] in ([], ["precision"])


def in_whole_levels(x):
    """As one that takes stored images alone, with a straight-through gradient."""
    return HONEST(x + ((x * 255).round() / 255 - x).detach())


@pytest.mark.parametrize(
    "model",
    [
        in_whole_levels,
        *(Defended(HONEST, defense) for defense in (JPEG(50), BitDepth(3), GaussianSmoothing(1.0))),
        lambda x: HONEST(x).bfloat16(),
        lambda x: HONEST(x).double(),
        lambda x: HONEST(x).log_softmax(dim=1),
    ],
    ids=["levels", "jpeg", "bits", "smooth", "bfloat16", "float64", "log-softmax"],
)
@pytest.mark.parametrize("eps", [1 / 255, 16 / 255])
def test_an_honest_gradient_that_is_rounded_raises_no_flag(model, eps):
    verdict = measured_gradient(replace(sample(model), eps=eps).among_right)
    assert verdict.verdict == "passed"
    assert min(verdict.figures.values()) > 0.85
    assert measured_gradient(replace(sample(model, 2), eps=eps)).verdict == "passed"


def test_two_wrong_classes_that_are_nearly_equal_raise_no_flag():
    """Where they cross, the largest of both has a kink, whose measured slope is none."""

    def tied(x):
        move = ((x - PIXELS[:4]) * (WHERE - 0.5)).flatten(1).sum(dim=1)
        return torch.stack([torch.full_like(move, 3.0), move + 1e-4, -2 * move], dim=1)

    tie = replace(sample(tied, 4), labels=torch.zeros(4, dtype=torch.int64))
    verdict = measured_gradient(tie)
    assert verdict.verdict == "passed"
    assert min(verdict.figures.values()) > 0.99


def test_infinite_logits_are_not_called_random():
    found = {v.check: v.verdict for v in check_model(sample(all_but_two_ruled_out), QUICK)}
    assert found["finite logits"] == "failed"
    assert found["repeatable"] == found["attack path"] == "passed"


def test_a_defense_of_ones_own_is_no_excuse():
    class Turned(nn.Module):
        def forward(self, x):
            return Through.apply(x, lambda grad: torch.where(WHERE < 0.35, -grad, grad))

    assert measured_gradient(sample(Defended(HONEST, Turned()))).verdict == "failed"
    assert measured_gradient(sample(Defended(HONEST, JPEG(75), Turned()))).verdict == "failed"


def test_an_honest_clip_raises_no_flag(bundled_clip):
    from fastprompt import load_data

    data = load_data("patterns", shots=1)
    model = bundled_clip.zero_shot(data.classnames, data.templates)
    result = evaluate(model, data.test, ["clean", "pgd-5"], "1/255", limit=12, progress=False)
    assert result.trusted
    assert {s["verdict"] for s in result.sanity} <= {"passed", "skipped"}


def test_a_model_that_says_it_is_random_is_attacked_in_expectation():
    noisy = Random(HONEST, 0.05)
    found = {v.check: v for v in check_model(sample(noisy, samples=20), QUICK)}
    assert found["repeatable"].verdict == "passed"
    assert "means of 20 passes" in found["repeatable"].reason
    assert {v.verdict for v in found.values()} == {"passed"}
    data = ImageTensors(images(), LABELS)
    result = evaluate(noisy, data, ["pgd-3"], EPS, limit=8, progress=False)
    assert result.how["samples"] == {"model": 20}
    assert result.rows[1]["settings"]["samples"] == 20
    assert result.rows[1]["settings"]["counts"] == "last iterate"  # one lucky pass is no success
    assert result.trusted


def test_equal_passes_are_not_random_whatever_the_model_says():
    found = {v.check: v for v in check_model(sample(Random(partly_turned), samples=20), QUICK)}
    assert "not random" in found["repeatable"].reason
    assert found["measured gradient"].verdict == "failed"
    assert found["planted example"].verdict == "passed"  # it ran: nothing is skipped
    assert sample(Random(HONEST), samples=20).averaged == 1


def test_random_numbers_are_fixed_and_restored():
    noisy = sample(Random(HONEST, 0.05), samples=20)
    own = sample(Random(HONEST, 0.05, torch.Generator().manual_seed(0)), samples=20)
    assert (noisy.noise, own.noise, sample(HONEST).noise) == ("seeded", "free", "none")
    one, other = noisy.fixed(1), noisy.fixed(2)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert torch.equal(one.logits(one.images), one.logits(one.images))
    assert not torch.equal(one.logits(one.images), other.logits(one.images))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()
    assert own.fixed(1) is own


def test_a_slope_that_noise_hides_is_not_trusted():
    """With random numbers of its own, slopes are averages: wrong, right, or not known."""
    verdicts = {}
    for noise in (0.01, 3.0):
        own = Random(HONEST, noise, torch.Generator().manual_seed(0))
        verdict = measured_gradient(sample(own, samples=5))
        verdicts[noise] = (verdict.verdict, verdict.decisive)
    assert verdicts == {0.01: ("passed", False), 3.0: ("skipped", True)}
    own = Random(partly_turned, 0.01, torch.Generator().manual_seed(0))
    assert measured_gradient(sample(own, samples=5)).verdict == "failed"


def test_a_decisive_check_that_cannot_run_is_not_trusted():
    data = ImageTensors(images(), LABELS)
    result = evaluate(HONEST, data, ["pgd-3"], EPS, limit=16, progress=False)
    assert result.trusted
    skipped = Verdict("measured gradient", "skipped", "the noise hides the slope", decisive=True)
    result.sanity.append({"model": "model", **asdict(skipped)})
    assert not result.trusted
    (reason,) = result.reasons
    assert "measured gradient" in reason
    assert "the noise hides the slope" in reason
    del result.sanity[-1]["decisive"]
    assert result.trusted  # as a result of an earlier release is


def test_the_checks_take_few_passes_beside_the_evaluation():
    """The stated passes hold, and a small evaluation is checked on few images."""
    for depth, n in ((QUICK, 16), (QUICK, QUICK.least)):
        own = sample(HONEST, n)
        check_model(own, depth)
        assert own.meter.passes <= (1 if n == 16 else 1.3) * depth.passes * n
    own = sample(Random(HONEST, 0.05), 8, samples=20)
    check_model(own, QUICK)
    assert own.meter.passes <= 2.5 * QUICK.passes * 8
    assert QUICK.affords(0) == QUICK.least
    assert QUICK.affords(10**9) == QUICK.images
    assert QUICK.affords(8 * 4 * QUICK.passes) == 8
    assert FULL.affords(10**5, samples=20) < FULL.affords(10**5)


def test_the_progress_says_which_check_runs_and_how_many_passes(monkeypatch):
    notes = []
    monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
    monkeypatch.setattr(progress, "_OFTEN", 0.0)
    data = ImageTensors(images(), LABELS)
    evaluate(HONEST, data, ["pgd-3"], 1 / 255, limit=8, progress=False)
    attacked = [note for note in notes if note.endswith(" passes") and ": pgd-3 at 1/255" in note]
    assert len(attacked) > 3
    told = [note for note in notes if "checks: " in note]
    assert any(note.startswith("model: checks: measured gradient, ") for note in told)
    assert any(note.startswith("model: checks: attacked again, ") for note in told)
    passes = [int(note.split(", ")[1].split()[0].replace(",", "")) for note in told]
    assert passes == sorted(passes)
    assert passes[-1] > 500


def test_planted_examples_are_found_by_gradients_and_not_by_chance():
    (verdict,) = (v for v in check_model(sample(HONEST), QUICK) if v.check == "planted example")
    assert verdict.verdict == "passed"
    assert verdict.figures["planted"] >= 6
    assert verdict.figures["found"] >= 0.8
    assert verdict.figures["by_chance"] <= 0.5
    (verdict,) = (v for v in check_model(sample(rounded), QUICK) if v.check == "planted example")
    assert verdict.verdict == "failed"
    assert "planted adversarial examples" in verdict.reason


def test_where_nothing_is_right_there_is_nothing_to_attack():
    wrong = replace(sample(HONEST), labels=(LABELS[:16] + 1) % 6)
    skipped = [v for v in check_model(wrong, QUICK) if v.verdict == "skipped"]
    assert len(skipped) == len(QUICK.of_the_attack)
    assert all("no image is classified correctly" in v.reason for v in skipped)


def test_8_bits_stay_within_the_ball():
    x = PIXELS[:4]
    for eps in (1 / 255, 1.5 / 255, 4 / 255):
        adv = (x + eps * torch.rand(x.shape).mul(2).sub(1).sign()).clamp(0, 1)
        stored = in_8_bits(adv, x, eps)
        assert ((stored - x).abs() <= eps + 1e-6).all()
        assert torch.equal((stored * 255).round() / 255, stored)


def row(attack="pgd-20", eps=4 / 255, accuracy=0.5, path="adaptive"):
    return {"attack": attack, "eps": eps, "accuracy": accuracy, "path": path}


@pytest.mark.parametrize(
    ("rows", "check", "words"),
    [
        ([row(eps=1 / 255), row(eps=2 / 255, accuracy=0.6)], "rows: radius", "larger ball"),
        ([row(), row("pgd-100", accuracy=0.6)], "rows: steps", "more steps"),
        (
            [row(), row("square", accuracy=0.3, path="black-box")],
            "rows: white-box",
            "less access is stronger",
        ),
        (
            [row(), row("pgd-20@other", accuracy=0.3, path="transfer:other")],
            "rows: white-box",
            "less access is stronger",
        ),
    ],
)
def test_rows_that_contradict_each_other_are_flagged(rows, check, words):
    failed = {v.check: v.reason for v in check_rows(rows) if v.verdict == "failed"}
    assert list(failed) == [check]
    assert words in failed[check]


def test_rows_that_agree_are_not():
    rows = [
        row(eps=1 / 255, accuracy=0.7),
        row(),
        row("pgd-100", accuracy=0.51),  # luck
        row("square", accuracy=0.6, path="black-box"),
        row("feature-pgd-40", accuracy=0.9, path="transfer:image-encoder"),
    ]
    assert {v.verdict for v in check_rows(rows)} == {"passed"}


def test_a_failed_check_makes_the_evaluation_one_not_to_be_trusted():
    data = ImageTensors(images(), LABELS)
    result = evaluate(other_in_the_attack, data, ["clean"], progress=False)
    assert not result.trusted
    assert any("attack path" in reason for reason in result.reasons)
    assert "! not to be trusted: model, attack path" in result.table()
    assert evaluate(other_in_the_attack, data, ["clean"], sanity="off", progress=False).trusted


def failed_checks(model, data, attacks, eps=EPS):
    result = evaluate(model, data, attacks, eps, progress=False)
    return {s["check"]: s["reason"] for s in result.sanity if s["verdict"] == "failed"}, result


@pytest.mark.parametrize("model", [early(), in_large_batches], ids=["early", "large batches"])
def test_a_model_that_is_another_while_it_is_judged_is_attacked_again(model):
    failed, result = failed_checks(model, ImageTensors(images(), LABELS), ["pgd-10"])
    assert result.rows[1]["accuracy"] == 1.0
    assert list(failed) == ["attacked again"]
    assert "reported as robust under pgd-10 at 8/255 are fooled when" in failed["attacked again"]


def test_what_stands_under_one_loss_is_attacked_by_the_other():
    labels = squashed(PIXELS).argmax(1)
    data = ImageTensors(images(), labels)
    failed, result = failed_checks(squashed, data, ["pgd-20"])
    assert result.rows[1]["accuracy"] == 0.5
    assert list(failed) == ["another loss"]
    assert "on the other loss (margin or cross-entropy)" in failed["another loss"]
    failed, result = failed_checks(squashed, data, ["pgd-20", "cw-20"])
    assert result.rows[2]["accuracy"] < 0.1
    assert not failed


ATTACKS = [
    ["pgd-1"],
    ["cw-3", "square-20"],
    ["apgd-ce-5", "pgd-20"],
]


@pytest.mark.parametrize("attacks", ATTACKS)
def test_what_stands_under_a_weak_attack_stands_again(attacks):
    data = ImageTensors(images(), LABELS)
    result = evaluate(HONEST, data, attacks, [1 / 255, 0.5 / 255], progress=False)
    again = next(s for s in result.sanity if s["check"] == "attacked again")
    assert again["verdict"] == "passed"
    assert set(again["figures"].values()) == {"0 of 12 fell"}


def test_claims_are_of_what_stands_under_every_attack_that_sees_the_model():
    def flagged(attack, flags, eps=4 / 255, path="adaptive"):
        return {**row(attack, eps, path=path), "flags": flags}

    rows = [
        flagged("pgd-20", "1101"),
        flagged("apgd-t", "11?0"),
        flagged("square", "1000", path="black-box"),
        flagged("cw-3", "1111", eps=1 / 255),
        flagged("pgd-2", "0110", eps=2 / 255, path="transfer:other"),
    ]
    large, small = claims(rows)
    assert (large.attack, large.kind, large.steps) == ("apgd-t", "apgd-t", 100)
    assert list(large.standing) == [0, 1]
    assert (small.kind, small.steps, list(small.standing)) == ("cw", 3, [0, 1, 2, 3])
    assert claims([flagged("pgd-20@own", "10")])[0].kind == "pgd"
    assert claims([flagged("fab-t", "10"), flagged("pgd-20", "10", eps=0.0)]) == []


def test_images_are_drawn_evenly_those_that_matter_first():
    assert evenly(4, 100) == [0, 33, 66, 99]
    assert evenly(16, 6) == [0, 1, 2, 3, 4, 5]  # fewer than asked for: all
    assert evenly(3, 0) == evenly(0, 3) == []
    assert in_turn(([8, 9], 2), (range(4, 10), 4), (range(10), 5)) == [0, 4, 7, 8, 9]


def test_the_checks_look_at_images_that_are_right_wherever_they_are():
    many = images(200)
    truth = HONEST(many.float() / 255).argmax(1)
    labels = (truth + 1) % 6
    labels[[3, 50, 51, 120]] = truth[[3, 50, 51, 120]]
    failed, _ = failed_checks(shuffled, ImageTensors(many, labels), ["pgd-3"])
    assert "measured gradient" in failed
    failed, result = failed_checks(HONEST, ImageTensors(many, labels), ["pgd-3"])
    assert not failed
    skipped = {s["check"] for s in result.sanity if s["verdict"] == "skipped"}
    assert "measured gradient" not in skipped
    # nothing is right: nothing is claimed, and nothing is to be doubted
    failed, result = failed_checks(HONEST, ImageTensors(many, (truth + 1) % 6), ["pgd-3"])
    assert not failed
    assert result.trusted
    assert result.rows[1]["accuracy"] == 0
