"""The page in a real browser: does it look like something, and does it ask nobody?"""

import json
import shutil
import subprocess

import numpy as np
import pytest
from helpers.made_up import run
from PIL import Image

from fastprompt.report import write_report

FOUND = [
    path
    for name in ("chromium", "chromium-browser", "google-chrome")
    if (path := shutil.which(name))
]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOUND, reason="no Chromium is installed")]
PHONE, DESKTOP = (390, 844), (1280, 900)
DARK, LIGHT = 0, 1  # as Chromium numbers them


def browse(page, folder, size, scheme, *more):
    """A screenshot of the page's top, and what the browser had to say."""
    folder.mkdir(exist_ok=True)
    shot, net = folder / "shot.png", folder / "net.json"
    command = [
        *(FOUND[0], "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={net}",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={size[0]},{size[1]}",
        *(more or (f"--screenshot={shot}",)),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return shot, net, done


def pixels(shot):
    return np.asarray(Image.open(shot).convert("RGB"))


def asked(net):
    """The addresses that the page asked for over the network.

    The browser has questions of its own, such as for the time: they come from no origin.
    """
    text = net.read_text("utf-8").strip()
    # a browser that is ended early leaves the list open
    log = json.loads(text if text.endswith("}") else text.rstrip(",\n ") + "]}")
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [
        e["params"] for e in log["events"] if e["type"] == start and "url" in e.get("params", {})
    ]
    urls = [job["url"] for job in jobs if job.get("initiator") != "not an origin"]
    return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", [DARK, LIGHT], ids=["dark", "light"])
def test_it_is_drawn_in_its_scheme_without_a_complaint(run, tmp_path, size, scheme):
    shot, net, done = browse(write_report(run), tmp_path / "browser", size, scheme)
    seen = pixels(shot)
    assert seen.shape[:2] == size[::-1]
    colors = np.unique(seen.reshape(-1, 3), axis=0)
    assert len(colors) > 50, "the page is blank"
    middle = float(np.median(seen))
    assert middle < 60 if scheme == DARK else middle > 200
    # ink: a hundredth of the page differs strongly from its paper
    assert (abs(seen.mean(axis=2) - middle) > 80).mean() > 0.01
    assert "CONSOLE" not in done.stderr
    assert asked(net) == []


def test_a_request_and_a_complaint_would_be_noticed(tmp_path):
    page = tmp_path / "loud.html"
    page.write_text(
        "<img src='https://example.invalid/x.png'><script>console.error('planted')</script>"
    )
    _, net, done = browse(page, tmp_path / "browser", PHONE, LIGHT)
    assert any("example.invalid" in url for url in asked(net))
    assert "planted" in done.stderr


def test_the_policy_blocks_what_it_does_not_name(run, tmp_path):
    page = write_report(run)
    text = page.read_text("utf-8")
    planted = "<script>document.title = 'run'</script><img src='https://example.invalid/x.png'>"
    page.write_text(text.replace("<main>", f"<main style='color: red'>{planted}"), "utf-8")
    _, net, done = browse(page, tmp_path / "browser", PHONE, LIGHT, "--dump-dom")
    assert "<title>run" not in done.stdout
    assert asked(net) == []
    complaints = [line for line in done.stderr.splitlines() if "Content Security Policy" in line]
    for kind in ("script", "style", "image"):
        assert [line for line in complaints if kind in line.lower()], kind


def test_a_phone_is_not_scrolled_sideways(run, tmp_path):
    page = write_report(run)
    probe = tmp_path / "probe.html"
    script = (
        "<script>addEventListener('load', () => {"
        "const f = document.querySelector('iframe'), d = f.contentDocument.documentElement;"
        "document.title = 'w' + d.scrollWidth + ' of ' + f.clientWidth})</script>"
    )
    inner = page.read_text("utf-8").replace("&", "&amp;").replace('"', "&quot;")
    probe.write_text(
        f'{script}<iframe srcdoc="{inner}" style="width:360px;height:800px;border:0"></iframe>'
    )
    _, _, done = browse(probe, tmp_path / "browser", DESKTOP, LIGHT, "--dump-dom")
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    assert title == "w360 of 360"


def test_it_prints(run, tmp_path):
    target = tmp_path / "page.pdf"
    browse(write_report(run), tmp_path / "browser", DESKTOP, DARK, f"--print-to-pdf={target}")
    data = target.read_bytes()
    assert data.startswith(b"%PDF")
    assert 2 <= data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") <= 20


@pytest.mark.parametrize("scheme", [DARK, LIGHT], ids=["dark", "light"])
def test_a_table_that_goes_on_beside_the_screen_has_a_shadow_there(run, tmp_path, scheme):
    style = write_report(run).read_text("utf-8").split("<style>")[1].split("</style>")[0]
    box = "<div class=scroll style='height:100px;width:300px'><div style='width:{}px'></div></div>"
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"<!doctype html><style>{style} body {{ padding: 0; margin: 0 }}</style>"
        + "".join(box.format(width) for width in (600, 300))
    )
    shot, _, _ = browse(probe, tmp_path / "browser", (600, 300), scheme)
    seen = pixels(shot).astype(int)
    paper = seen[250, 550]
    wide, narrow = (abs(seen[y, :300] - paper).max(axis=1) for y in (50, 150))
    assert wide[299] > 30
    assert wide[:270].max() == 0
    assert narrow.max() == 0
