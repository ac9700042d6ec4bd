"""examples/serve.py: over loopback, with the run of a tuner."""

import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from fastprompt import CoOpTuner
from fastprompt.data import ImageTensors

pytest.importorskip("fastapi")  # the extra test-use
pytest.importorskip("uvicorn")

import uvicorn

from examples import serve

NAMES = ["red circle", "blue star", "green square"]


@pytest.fixture(scope="module")
def run(bundled_clip, tmp_path_factory):
    """The folder of a short run."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, *bundled_clip.pixel_shape), generator=generator)
    shown = ImageTensors(pixels.to(torch.uint8), torch.arange(6) % 3)
    folder = tmp_path_factory.mktemp("serve") / "run"
    tuner = CoOpTuner(bundled_clip, NAMES, epochs=1, batch=6, n_ctx=2)
    tuner.fit(shown, out=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def classifier(run):
    return serve.load(str(run))


@contextmanager
def serving(app):
    """The address of a server in a thread, on a free port."""
    with serve.listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(classifier):
    with serving(serve.make_app(classifier, most_bytes=200_000, most_pixels=500 * 400)) as found:
        yield found


def ask(url, body=None):
    """The status and the answer of a request."""
    try:
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def picture(seed=0, kind="PNG", size=(60, 52)):
    pixels = torch.randint(256, (*size[::-1], 3), generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(file, kind)
    return file.getvalue()


def expected(classifier, content):
    transform = classifier.preprocess
    image = transform(Image.open(io.BytesIO(content)).convert("RGB"))
    assert image.dtype == torch.float32
    with torch.no_grad():
        return classifier(image[None])[0].softmax(dim=0)


def test_the_answer_is_the_classifiers(address, classifier):
    content = picture()
    status, answer = ask(f"{address}/predict", content)
    wanted = expected(classifier, content)
    assert status == 200
    assert [row["class"] for row in answer["top"]] == [NAMES[i] for i in wanted.argsort().flip(0)]
    found = {row["class"]: row["probability"] for row in answer["top"]}
    torch.testing.assert_close(torch.tensor([found[n] for n in NAMES]), wanted, rtol=0, atol=1e-5)
    _, first = ask(f"{address}/predict?top=1", content)
    assert first["top"] == answer["top"][:1]


def test_pictures_that_wait_are_classified_together(classifier):
    app = serve.make_app(classifier, batch=4)
    contents = [picture(seed) for seed in range(10)]
    slow = classifier.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    try:
        with serving(app) as address, ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda c: ask(f"{address}/predict?top=1", c), contents))
    finally:
        slow.remove()
    sizes = app.state.batches.sizes
    assert sum(sizes) == len(contents)
    assert 1 < max(sizes) <= 4
    for content, (status, answer) in zip(contents, answers, strict=True):
        wanted = expected(classifier, content)
        assert (status, answer["top"][0]["class"]) == (200, NAMES[wanted.argmax()])
        assert answer["top"][0]["probability"] == pytest.approx(wanted.max().item(), abs=1e-5)


def bomb(side=20_000):
    """A PNG file of a few kilobytes whose header promises a huge picture."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes(1000 * (1 + side // 8)))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"x" * 200_001, 413, "200,000 bytes"),
        (bomb(), 413, "200,000 pixels"),
        (bomb(500), 413, "200,000 pixels"),
        (b"", 415, "picture file"),
        (b"hello", 415, "picture file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "picture file"),
        (picture()[:-2000], 422, "unreadable"),
    ],
    ids=["bytes", "huge", "large", "empty", "text", "eps", "cut"],
)
def test_what_is_no_picture_or_too_large_is_refused(address, body, status, word):
    found, answer = ask(f"{address}/predict", body)
    assert (found, word in answer["detail"]) == (status, True), answer
    assert ask(f"{address}/predict", picture())[0] == 200


def test_a_huge_picture_is_not_decoded(monkeypatch):
    monkeypatch.setattr(serve, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(serve.HTTPException, match="pixels"):
        serve.picture_of(bomb(), serve.MOST_PIXELS)


@pytest.mark.parametrize("top", [0, 1001, "all"])
def test_an_invalid_number_of_classes_is_refused(address, top):
    status, answer = ask(f"{address}/predict?top={top}", picture())
    assert (status, answer["detail"][0]["loc"]) == (422, ["query", "top"])


def test_a_picture_that_does_not_arrive_is_given_up(classifier, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS", 0.2)
    with serving(serve.make_app(classifier)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as link:
            link.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc")
            assert b" 408 " in link.recv(1000).split(b"\r\n")[0]


def test_an_error_of_the_model_is_told_and_the_next_picture_is_classified(classifier):
    def fail(*_):
        hook.remove()
        raise RuntimeError("planted")

    hook = classifier.register_forward_pre_hook(fail)
    with serving(serve.make_app(classifier)) as address:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"{address}/predict", picture(), timeout=60)
        assert ask(f"{address}/predict", picture())[0] == 200


def test_health_is_that_of_the_classifiers_task(classifier):
    app = serve.make_app(classifier)
    with serving(app) as address:
        status, answer = ask(f"{address}/health")
        assert (status, answer["status"], answer["classes"]) == (200, "ok", 3)
        app.state.worker.get_loop().call_soon_threadsafe(app.state.worker.cancel)
        while not app.state.worker.done():
            time.sleep(0.01)
        assert ask(f"{address}/health")[0] == ask(f"{address}/predict", picture())[0] == 503


def test_a_port_in_use_is_one_line_before_the_model_is_loaded(run, capsys, monkeypatch):
    monkeypatch.setattr(serve, "load", lambda *_: pytest.fail("loaded"))
    with serve.listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        assert serve.main([str(run), f"--port={port}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: port: cannot listen on 127.0.0.1:{port} (Address already")
    assert "--port" in line


@pytest.mark.parametrize("config", [None, '{"method": "unknown"}'])
def test_a_folder_without_a_run_is_one_line(config, tmp_path, capsys):
    if config:
        (tmp_path / "config.json").write_text(config, "utf-8")
    assert serve.main([str(tmp_path), "--port=0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_it_serves_until_it_is_told_to_stop(run, capsys, monkeypatch):
    """`main`, in a thread: what it prints is the address."""
    started = []
    plain = uvicorn.Server

    def server(config):
        started.append(plain(config))
        return started[0]

    monkeypatch.setattr(serve.uvicorn, "Server", server)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(serve.main([str(run), "--port=0"])))
    thread.start()
    try:
        while not (started and started[0].started):
            assert thread.is_alive()
            time.sleep(0.05)
        address = capsys.readouterr().out.split()[-1]
        assert ask(f"{address}/health")[1]["status"] == "ok"
    finally:
        if started:
            started[0].should_exit = True
        thread.join()
    assert codes == [0]
