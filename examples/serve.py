"""Serve the classifier of a run over HTTP; pictures that arrive together are classified together.

    pip install fastapi uvicorn
    python examples/serve.py runs/first --port 8000
    curl --data-binary @picture.jpg http://127.0.0.1:8000/predict
    curl http://127.0.0.1:8000/health

The body of a request is the picture's file. The server listens on this machine only, unless
``--host`` says otherwise, and has no authentication: put it behind a proxy that has.
"""

import argparse
import asyncio
import io
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from PIL import Image
from torch import Tensor

from fastprompt import AutoTuner
from fastprompt.data.decode import decode
from fastprompt.model import CLIPClassifier

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MOST_BYTES, MOST_PIXELS = 10_000_000, 40_000_000
MOST_REQUESTS = 100  # at a time; further ones get status 503
SECONDS = 30  # in which a picture must have arrived


def load(run: str, device: str = "cpu") -> CLIPClassifier:
    """Return the classifier of a run folder, or of a repository of the Hugging Face Hub.

    Raises:
        OSError, ValueError: there is no complete run.
    """
    tuner = AutoTuner.from_pretrained(run)
    tuner.clip.to(device)
    return tuner.classifier


class Batches:
    """Classifies single images; those that wait while a batch is computed form the next batch."""

    def __init__(self, classifier: CLIPClassifier, most: int) -> None:
        self.classifier, self.most = classifier, most
        self.sizes: list[int] = []
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()

    async def probabilities(self, image: Tensor) -> Tensor:
        """Return the probabilities of the classes, ``[C]``, of an image ``[C, H, W]``."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image, answer))
        return await answer

    async def run(self) -> None:
        """Answer until the task is canceled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self.most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            images, answers = zip(*batch, strict=True)
            self.sizes = [*self.sizes[-99:], len(batch)]
            try:
                rows = await asyncio.to_thread(self._classify, torch.stack(images))
            except Exception as error:  # told to each of the batch; the next batch may succeed
                for answer in answers:
                    answer.set_exception(error)
            else:
                for answer, row in zip(answers, rows, strict=True):
                    answer.set_result(row)

    @torch.inference_mode()
    def _classify(self, images: Tensor) -> Tensor:
        device = self.classifier.clip.device
        return self.classifier(images.to(device)).softmax(dim=1).cpu()


async def upload(request: Request, most: int) -> bytes:
    """Return the body of a request, of which no more than ``most`` bytes are read."""
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise HTTPException(413, f"the file must have at most {most:,} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the file did not arrive within {SECONDS} s") from None
    return bytes(content)


def picture_of(content: bytes, most_pixels: int) -> Image.Image:
    """Decode a picture file after a look at its header: a small file may hold a huge picture."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as header:
            pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = most_pixels + 1
    except Exception:  # Pillow's plugins raise any error on a damaged file
        raise HTTPException(
            415, f"the body must be a picture file, one of {', '.join(FORMATS)}"
        ) from None
    if pixels > most_pixels:
        raise HTTPException(413, f"the picture must have at most {most_pixels:,} pixels")
    try:
        return decode(Path("the picture"), content)
    except ValueError as error:
        raise HTTPException(422, str(error).removeprefix("data: ")) from None


def make_app(
    classifier: CLIPClassifier,
    *,
    batch: int = 32,
    most_bytes: int = MOST_BYTES,
    most_pixels: int = MOST_PIXELS,
) -> FastAPI:
    """Return the application: ``POST /predict`` and ``GET /health``."""
    batches, transform = Batches(classifier, batch), classifier.preprocess

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batches, app.state.worker = batches, asyncio.create_task(batches.run())
        yield
        app.state.worker.cancel()

    app = FastAPI(title="fastprompt", lifespan=lifespan)

    @app.post("/predict")
    async def predict(
        request: Request, top: Annotated[int, Query(ge=1, le=1000)] = 5
    ) -> dict[str, Any]:
        check_worker()
        content = await upload(request, most_bytes)
        picture = await asyncio.to_thread(picture_of, content, most_pixels)
        image = await asyncio.to_thread(transform, picture)
        values, rows = (await batches.probabilities(image)).topk(min(top, len(names)))
        pairs = zip(rows.tolist(), values.tolist(), strict=True)
        return {"top": [{"class": names[row], "probability": value} for row, value in pairs]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        check_worker()
        return {"status": "ok", "model": classifier.clip.name, "classes": len(names)}

    def check_worker() -> None:
        if app.state.worker.done():
            raise HTTPException(503, "the classifier has stopped; start the server again")

    names = classifier.classnames
    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before the model is loaded.

    Raises:
        OSError: the port is in use, or may not be used.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise OSError(
            f"port: cannot listen on {host}:{port} ({error.strerror}); pass another --port or "
            "end the process that uses this one"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder of fastprompt tune, or a repository, org/name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="pictures classified at once")
    parser.add_argument("--max-bytes", type=int, default=MOST_BYTES, help="of an uploaded file")
    parser.add_argument("--max-pixels", type=int, default=MOST_PIXELS, help="of a picture")
    given = parser.parse_args(arguments)
    try:
        with listen(given.host, given.port) as server:
            app = make_app(
                load(given.run, given.device),
                batch=given.batch,
                most_bytes=given.max_bytes,
                most_pixels=given.max_pixels,
            )
            print(f"serving on http://{given.host}:{server.getsockname()[1]}", flush=True)
            config = uvicorn.Config(app, limit_concurrency=MOST_REQUESTS, log_level="warning")
            uvicorn.Server(config).run(sockets=[server])
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
