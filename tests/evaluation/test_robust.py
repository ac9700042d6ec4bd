"""Evaluation: what counts as robust, and what is reported."""

import json

import pytest
import torch
from torch import nn

from fastprompt import PGD, evaluate, load_data
from fastprompt.classifier import CLIPClassifier
from fastprompt.data import ImageTensors
from fastprompt.evaluation.robust import wilson


class Brightness(nn.Module):
    """Class 1 if the mean pixel is above one half: the margin of each image is known."""

    def forward(self, x):
        margin = 50 * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-margin, margin], dim=1)


def greys(levels, labels):
    images = torch.stack([torch.full((3, 16, 16), v, dtype=torch.uint8) for v in levels])
    return ImageTensors(images, torch.tensor(labels))


# 0.5 lies between the levels 127 and 128
DATA = greys([100, 122, 126, 129, 133, 160, 140], [0, 0, 0, 1, 1, 1, 0])


def test_counts_are_what_the_margins_say():
    result = evaluate(Brightness(), DATA, ["clean", "pgd-5"], ["4/255", "8/255"], progress=False)
    assert result.accuracy("model", "clean") == 6 / 7  # the last label is wrong
    assert result.accuracy("model", "pgd-5", "4/255") == 4 / 7
    assert result.accuracy("model", "pgd-5", "8/255") == 2 / 7
    assert result.trusted
    with pytest.raises(KeyError, match="no row"):
        result.accuracy("model", "pgd-9", "4/255")


def test_an_image_that_is_wrong_when_clean_never_counts_as_robust():
    class Contrary(nn.Module):  # the attack can only turn its answer to the right one
        def forward(self, x):
            return Brightness()(x).flip(1)

    result = evaluate(Contrary(), DATA, ["clean", "pgd-3"], "8/255", progress=False)
    assert result.accuracy("model", "pgd-3", "8/255") <= result.accuracy("model", "clean")


def test_zero_eps_equals_clean():
    result = evaluate(Brightness(), DATA, ["clean", "pgd-2"], 0, progress=False)
    assert result.accuracy("model", "pgd-2", 0) == result.accuracy("model", "clean")


def detached(x):
    return Brightness()(x).detach()


def nan_gradient(x):
    return Brightness()(x) + 0 * (x * 0).sqrt().sum(dim=(1, 2, 3))[:, None]


def nan_logits(x):
    return Brightness()(x) * float("nan")


@pytest.mark.parametrize("model", [detached, nan_gradient, nan_logits])
def test_a_model_without_gradients_is_not_scored_as_robust(model):
    row = evaluate(model, DATA, ["pgd-3"], "1/255", progress=False).rows[0]
    assert row["accuracy"] == 0.0
    assert row["trusted"] is False
    assert "no usable gradient for 7 of 7" in row["reasons"][0]
    if model is not nan_logits:
        assert row["stalled"] == 6


def test_rows_hold_what_was_done(tmp_path):
    result = evaluate({"m": Brightness()}, DATA, ["clean", "pgd-3"], "4/255", progress=False)
    result.save(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text())
    clean, robust = saved["rows"]
    assert (clean["path"], clean["eps"], clean["n"]) == ("none", 0.0, 7)
    assert robust["path"] == "adaptive"
    assert robust["eps"] == 4 / 255
    assert robust["settings"]["steps"] == 3
    assert robust["settings"]["counts"] == "last iterate"
    assert robust["interval"][0] < robust["accuracy"] < robust["interval"][1]
    assert saved["trusted"] is True
    assert "torch" in saved["versions"]


def test_batch_size_changes_nothing():
    results = [
        evaluate(Brightness(), DATA, ["pgd-3"], "4/255", batch=b, progress=False).rows[0]
        for b in (1, 3, 7)
    ]
    assert len({r["correct"] for r in results}) == 1
    assert results[0]["n"] == 7


def test_adaptive_attack_goes_through_each_model_and_transfer_is_shared(small_clip, monkeypatch):
    data = load_data("patterns", shots=1)
    models = {
        k: small_clip.zero_shot(data.classnames, [t]) for k, t in (("a", "{}"), ("b", "x {}"))
    }
    attacked = []
    real = PGD.run

    def spy(self, *args, **options):
        attacked.append(self.model)
        return real(self, *args, **options)

    monkeypatch.setattr(PGD, "run", spy)
    forwards = []
    inner = CLIPClassifier.encode_image
    monkeypatch.setattr(
        CLIPClassifier, "encode_image", lambda self, x: forwards.append(len(x)) or inner(self, x)
    )
    result = evaluate(
        models, data.test, ["pgd-1", "feature-pgd-2"], "4/255", limit=4, progress=False
    )
    assert attacked == list(models.values())
    assert [r["path"] for r in result.rows] == ["adaptive"] * 2 + ["transfer:image-encoder"] * 2
    # clean 2; PGD-1: 1 step + 1 flag + 1 verdict each; feature: 1 clean + 2 steps once, 2 verdicts
    assert len(forwards) == 2 + 2 * 3 + 3 + 2


def test_stop_every_is_in_the_settings_and_counts_no_more_as_robust():
    attacks, radii = ["clean", "pgd-5"], ["2/255", "4/255", "8/255"]
    plain, ours, late = (
        evaluate(Brightness(), DATA, attacks, radii, stop_every=k, progress=False)
        for k in (None, 2, 5)
    )
    for one, other in zip(plain.rows, late.rows, strict=True):
        assert (one["correct"], one["stalled"]) == (other["correct"], other["stalled"])
    for one, other in zip(plain.rows, ours.rows, strict=True):
        assert other["correct"] <= one["correct"]
        assert other["trusted"]
        if other["attack"] == "pgd-5":
            assert one["settings"]["counts"] == "last iterate"
            assert other["settings"]["counts"] == "every 2 iterates"
            assert {**other["settings"], "counts": ""} == {**one["settings"], "counts": ""}
    assert ours.accuracy("model", "pgd-5", "8/255") == 2 / 7


def test_stop_every_finds_what_the_last_iterate_hides():
    class Ring(nn.Module):  # wrong in a narrow band of brightness alone: further on right again
        def forward(self, x):
            mean = x.mean(dim=(1, 2, 3))
            away = 30 * ((mean - 0.55).abs() - 0.025)
            return torch.stack([away, -away], dim=1)

    class Pulled(Ring):  # its gradient always points to brighter images
        def forward(self, x):
            pull = -x.mean(dim=(1, 2, 3))
            logits = super().forward(x).detach()
            return logits + torch.stack([pull - pull.detach(), 0 * pull], dim=1)

    data = greys([131, 133], [0, 0])  # the band goes from level 134 to 146
    plain, ours = (
        evaluate(Pulled(), data, ["pgd-8"], 40 / 255, stop_every=k, progress=False).rows[0]
        for k in (None, 1)
    )
    assert plain["correct"] == 2
    assert ours["correct"] == 0
    assert ours["trusted"]


def test_stop_every_is_handed_to_adaptive_attacks_alone(small_clip):
    data = load_data("patterns", shots=1)
    model = small_clip.zero_shot(data.classnames)
    attacks = ["clean", "pgd-2", "feature-pgd-2"]
    rows = evaluate(model, data.test, attacks, limit=4, stop_every=1, progress=False).rows
    assert [row["settings"].get("counts") for row in rows] == [
        None,
        "every 1 iterates",
        "last iterate",
    ]


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_bad_stop_every_is_refused(value):
    with pytest.raises((ValueError, TypeError), match="stop_every must be"):
        evaluate(Brightness(), DATA, ["pgd-2"], stop_every=value, progress=False)


def test_limit_draws_the_same_images_for_a_seed():
    rows = [
        evaluate(Brightness(), DATA, ["clean"], limit=3, seed=s, progress=False).rows[0]["correct"]
        for s in (0, 0)
    ]
    assert rows[0] == rows[1]
    assert evaluate(Brightness(), DATA, ["clean"], limit=3, progress=False).rows[0]["n"] == 3


def test_table_names_paths_and_marks_what_is_not_trusted():
    text = evaluate(
        {"good": Brightness(), "bad": detached}, DATA, ["clean", "pgd-2"], "2/255", progress=False
    ).table()
    assert "adaptive" in text
    assert "2/255" in text
    assert "! not to be trusted: bad, pgd-2: no usable gradient" in text


def test_wilson_interval():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_bad_input(small_clip):
    cases = [
        ({"attacks": ["pdg-20"]}, "unknown attack 'pdg-20': did you mean 'pgd-20'"),
        ({"attacks": []}, "attacks must not be empty"),
        ({"eps": 4}, "did you mean 4/255"),
        ({"eps": -0.1}, "eps must be at least 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"attacks": ["feature-pgd-2"]}, "it has no .clip"),
    ]
    for options, match in cases:
        with pytest.raises(ValueError, match=match):
            evaluate(Brightness(), DATA, progress=False, **options)
    with pytest.raises(ValueError, match="models must not be empty"):
        evaluate({}, DATA)
    with pytest.raises(ValueError, match="data is empty"):
        evaluate(Brightness(), ImageTensors(DATA.images[:0], DATA.labels[:0]))
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        evaluate(Brightness(), greys([3], [2]), progress=False)
    with pytest.raises(ValueError, match="eps must be above 0 for 'feature-pgd-2'"):
        evaluate(small_clip.zero_shot(["a", "b"]), DATA, ["feature-pgd-2"], 0, progress=False)
