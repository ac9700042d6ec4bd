"""Temperatures and calibration errors: their definitions, and what an evaluation reports."""

import json

import pytest
import torch

from fastprompt import PGD, Evaluation, evaluate
from fastprompt.data import ImageTensors
from fastprompt.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    calibration_error,
    fit_temperature,
    nll,
)
from fastprompt.report import write_report

NAMES = ["cat", "dog", "fox", "owl"]


def random_logits(n=400, classes=4, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale
    labels = torch.distributions.Categorical(logits=logits / 2).probs.cumsum(-1)
    draws = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return logits, (labels < draws).sum(-1).clamp(max=classes - 1)


def plain_error(probabilities, labels, bins=15):
    """The definition, bin by bin."""
    confidence, predicted = probabilities.max(dim=-1)
    total = 0.0
    for i in range(bins + 1):
        inside = (confidence >= i / bins) & (confidence < (i + 1) / bins)
        if inside.any():
            right = (predicted == labels)[inside].double().mean()
            total += float((confidence[inside].mean() - right).abs() * inside.double().mean())
    return total


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_error_is_its_definition(scale, classes):
    logits, labels = random_logits(classes=classes, scale=scale)
    probabilities = logits.softmax(-1)
    found = calibration_error(probabilities, labels)
    assert found == pytest.approx(plain_error(probabilities, labels), abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_error_is_that_of_torchmetrics(scale):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = random_logits(classes=5, scale=scale)
    probabilities = logits.softmax(-1)
    theirs = functional.multiclass_calibration_error(
        probabilities, labels, num_classes=5, n_bins=15, norm="l1"
    )
    assert calibration_error(probabilities, labels) == pytest.approx(float(theirs), abs=1e-6)


def test_certain_and_right_is_no_error():
    probabilities = torch.eye(3)
    assert calibration_error(probabilities, torch.arange(3)) == 0
    assert calibration_error(probabilities, torch.tensor([1, 2, 0])) == 1


def test_the_temperature_has_the_least_loss():
    logits, labels = random_logits(n=4000)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(2, rel=0.1)  # the labels were drawn at 2
    least = nll(logits, labels, found)
    assert least < nll(logits, labels)
    for other in (found * 0.999, found * 1.001):
        assert nll(logits, labels, other) > least
    assert fit_temperature(5 * logits + 7, labels) == pytest.approx(5 * found, rel=1e-12)
    assert fit_temperature(logits.float(), labels) == pytest.approx(found, rel=1e-6)


def test_the_temperature_has_bounds():
    logits = torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(LOWEST)
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(HIGHEST)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="calibrate: the model has NaN or infinite"):
        fit_temperature(torch.tensor([[value, 0.0]]), torch.tensor([0]))


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="calibrate: the model has no images"):
        fit_temperature(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


# ---- evaluations -------------------------------------------------------------------------------


def data_of(n, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % 4, classnames=NAMES)


@pytest.fixture(scope="module")
def calibrated(small_clip, tmp_path_factory):
    torch.set_num_threads(1)
    out, model = tmp_path_factory.mktemp("calibrated") / "run", small_clip.zero_shot(NAMES)
    options = {"batch": 4, "sanity": "off", "calibrate": data_of(12, 1), "out": out}
    return model, out, evaluate(model, data_of(10, 2), ["pgd-1"], ["1/255", "8/255"], **options)


def test_an_evaluation_has_the_errors_before_and_after(calibrated):
    model, out, result = calibrated
    found = result.calibration["model"]
    val, test = data_of(12, 1), data_of(10, 2)
    with torch.no_grad():
        temperature = fit_temperature(model(val.images / 255), val.labels)
    assert found["temperature"] == pytest.approx(temperature, rel=1e-4)
    assert found["n"] == 12
    assert found["nll"]["after"] < found["nll"]["before"]
    images = test.images / 255
    attack = PGD(model, 8 / 255, 2 / 255, 10, batch=4)
    adv = attack.run(images, test.labels, indices=torch.arange(10)).images
    for row, pixels in zip(found["rows"], (images, adv), strict=True):
        with torch.no_grad():
            logits = model(pixels).double()
        assert row["n"] == 10
        for key, divisor in (("before", 1), ("after", found["temperature"])):
            wanted = calibration_error((logits / divisor).softmax(-1), test.labels)
            assert row[key] == pytest.approx(wanted, abs=1e-5)
    assert [row["attack"] for row in found["rows"]] == ["clean", "pgd-10"]
    assert found["rows"][1]["eps"] == 8 / 255
    assert json.loads((out / "result.json").read_text())["calibration"] == result.calibration
    assert Evaluation.load(out / "result.json").calibration == result.calibration


def test_the_report_shows_it(calibrated, tmp_path):
    _, out, result = calibrated
    page = write_report([out], tmp_path / "report.html").read_text("utf-8")
    found = result.calibration["model"]
    assert f"temperature {found['temperature']:.4g}, fitted on 12 images" in page
    for row in found["rows"]:
        for key in ("before", "after"):
            assert f'<td class="num">{100 * row[key]:.1f}</td>' in page
    assert "Calibration" not in write_report([_without(out, tmp_path)]).read_text("utf-8")


def _without(out, tmp_path):
    found = json.loads((out / "result.json").read_text())
    del found["calibration"]  # as of earlier versions
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(found))
    return folder


def test_clean_images_alone_are_calibrated_without_an_attack(small_clip):
    model = small_clip.zero_shot(NAMES)
    options = {"sanity": "off", "calibrate": data_of(8, 1)}
    found = evaluate(model, data_of(4, 2), "clean", **options).calibration["model"]
    assert [row["attack"] for row in found["rows"]] == ["clean"]
