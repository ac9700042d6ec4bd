"""examples/demo.py: its functions, and the page in a real browser."""

import re
import shutil
import socket
from contextlib import closing

import pytest
import torch
from PIL import Image

from fastprompt import NAPTuner
from fastprompt.data import ImageTensors

pytest.importorskip("gradio")  # the extra test-use

from examples import demo

NAMES = ["red circle", "blue star", "green square"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def run(bundled_clip, tmp_path_factory):
    """The folder of a short run."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, *bundled_clip.pixel_shape), generator=generator)
    folder = tmp_path_factory.mktemp("demo") / "run"
    tuner = NAPTuner(bundled_clip, NAMES, epochs=1, steps=1, batch=6, n_ctx=2)
    shown = ImageTensors(pixels.to(torch.uint8), torch.arange(6) % 3)
    tuner.fit(shown, out=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def tuner(run):
    return demo.AutoTuner.load(run)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A red circle on white."""
    path = tmp_path_factory.mktemp("picture") / "circle.png"
    y, x = torch.meshgrid(torch.arange(90), torch.arange(120), indexing="ij")
    inside = (x - 60) ** 2 + (y - 45) ** 2 < 30**2
    pixels = torch.where(inside[..., None], torch.tensor([220, 20, 20]), 255).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def test_both_classifiers_are_attacked_within_eps(tuner, picture):
    eps = 2 / 255
    found = demo.compare(tuner, str(picture), NAMES, eps)
    image = demo.pixels_of(tuner, str(picture))
    pairs = zip(
        (found[:4], found[4:]), (tuner.clip.zero_shot(NAMES), tuner.classifier), strict=True
    )
    for (before, after, adv, difference), classifier in pairs:
        with torch.no_grad():
            wanted = classifier(image)[0].softmax(dim=0)
        torch.testing.assert_close(torch.tensor([before[n] for n in NAMES]), wanted)
        assert sum(after.values()) == pytest.approx(1, abs=1e-5)
        predicted = max(before, key=before.get)
        assert after[predicted] < before[predicted]
        made = demo.attacked(classifier, image, eps)
        assert 0 < (made - image).abs().max() <= eps + 1e-7
        assert demo.shown(made).tobytes() == adv.tobytes()
        assert min(adv.size) >= demo.SHOWN
        assert difference.size == adv.size
        assert difference.getextrema() != ((128, 128),) * 3


def test_without_a_radius_nothing_changes(tuner, picture):
    before, after, _, difference = demo.compare(tuner, str(picture), NAMES, 0.0)[:4]
    assert before == after
    assert difference.getextrema() == ((128, 128),) * 3


def test_the_difference_is_black_and_white_at_the_radius():
    image, eps = torch.full((1, 1, 1, 3), 0.5), 1 / 255
    adv = image + torch.tensor([-eps, 0, eps])
    torch.testing.assert_close(
        demo.magnified(image, adv, eps), torch.tensor([[[[0, 0.5, 1]]]]), rtol=0, atol=1e-5
    )


def test_class_names_are_separated_by_commas_or_lines():
    assert demo.names_of(" red kite,blue moon\n\ndog, ") == ["red kite", "blue moon", "dog"]


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        return found.getsockname()[1]


def test_a_port_in_use_is_one_line(run, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        assert demo.main([str(run), f"--port={port}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: port: cannot listen on 127.0.0.1:{port}")


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert demo.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(scope="module")
def address(tuner):
    page = demo.make_page(tuner)
    yield demo.launch(page, "127.0.0.1", free_port())
    page.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as player:
        # no name is looked up: the page needs no other machine
        quiet = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, address):
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.asked, page.complaints = [], []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.on("console", lambda said: page.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: page.complaints.append(f"error: {error}"))
    page.goto(address)
    page.get_by_role("button", name="Classify and attack").wait_for()
    yield page
    page.close()


def results(page):
    """The texts of the four tables of classes."""
    return page.get_by_test_id("label-output-value").all_inner_texts()


@pytest.mark.slow
def test_a_picture_is_classified_and_attacked_in_the_browser(page, address, picture, tmp_path):
    page.locator("input[type=file]").first.set_input_files(picture)
    page.get_by_label("Class names").fill("red circle, blue star\ngreen kite")
    page.locator("input[type=number]").fill("4")
    page.locator("img").first.wait_for()
    page.get_by_role("button", name="Classify and attack").click()
    page.get_by_test_id("label-output-value").nth(3).wait_for(timeout=60_000)
    assert len(results(page)) == 4
    assert {"red circle", "blue star", "green kite"} >= {*results(page)}
    text = page.inner_text("body")
    assert re.search(r"green kite\s*\n?\s*\d+%", text)
    # the picture itself, and for both classifiers the adversarial picture and the difference
    assert page.locator("img").count() >= 5
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "the page scrolls sideways"
    own = (address, "data:", "blob:")
    assert [url for url in page.asked if not url.startswith(own)] == []
    assert [said for said in page.complaints if said.startswith("error")] == []


@pytest.mark.slow
def test_what_is_wrong_is_said_on_the_page(page, picture):
    click = page.get_by_role("button", name="Classify and attack").click
    click()
    page.get_by_text("Drop a picture first.").wait_for()
    page.locator("input[type=file]").first.set_input_files(picture)
    page.locator("img").first.wait_for()
    page.get_by_label("Class names").fill("dog, dog")
    click()
    page.get_by_text("classnames must be distinct").wait_for()
