"""Look at a run in a browser: a picture's classes before and after an attack, zero-shot and tuned.

    pip install gradio
    python examples/demo.py runs/first

The attack is untargeted PGD on each classifier by itself, away from the class that the classifier
predicts for the clean picture. The page asks no other machine for anything.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastprompt import PGD, AutoTuner
from fastprompt.data.decode import decode
from fastprompt.model import CLIPClassifier
from fastprompt.tuning.tuner import Tuner

STEPS = 20
MOST_BYTES, MOST_PIXELS = 10_000_000, 40_000_000
SHOWN = 256  # least side of the pictures on the page
ABOUT = """# Zero-shot and tuned, before and after an attack
PGD with {steps} steps attacks each classifier by itself, away from the class that it predicts for
the clean picture. No pixel changes by more than ε. The difference is shown for each color by
itself: -ε is dark, +ε is bright. The run: `{method}` on `{model}`."""


def pixels_of(tuner: Tuner, path: str) -> Tensor:
    """Return the model's pixels of a picture file, float32 ``[1, C, H, W]`` in [0, 1]."""
    return tuner.classifier.preprocess(decode(Path(path)))[None]


def names_of(text: str) -> list[str]:
    """Return the class names in a text, separated by commas or lines."""
    return [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]


def probabilities(classifier: CLIPClassifier, image: Tensor) -> dict[str, float]:
    """Return the classes' probabilities of an image ``[1, C, H, W]``."""
    with torch.no_grad():
        values = classifier(image)[0].softmax(dim=0)
    return dict(zip(classifier.classnames, values.tolist(), strict=True))


def attacked(classifier: CLIPClassifier, image: Tensor, eps: float) -> Tensor:
    """Return PGD's adversarial image, away from the prediction for the clean image."""
    if not eps:
        return image
    with torch.no_grad():
        label = classifier(image).argmax(dim=1)
    return PGD(classifier, eps, alpha=eps / 4, steps=STEPS)(image, label)


def shown(image: Tensor) -> Image.Image:
    """Return an image ``[1, C, H, W]`` as a picture, small ones with visible pixels."""
    values = (image[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)
    scale = max(1, -(-SHOWN // min(picture.size)))
    return picture.resize([scale * side for side in picture.size], Image.Resampling.NEAREST)


def magnified(image: Tensor, adv: Tensor, eps: float) -> Tensor:
    """Return the difference of two images on gray: -eps is black, eps is white."""
    return 0.5 + (adv - image) / (2 * eps) if eps else torch.full_like(image, 0.5)


def compare(tuner: Tuner, path: str, names: Sequence[str], eps: float) -> list[Any]:
    """Classify and attack a picture with the zero-shot and the tuned classifier.

    Args:
        path: the picture's file.
        names: the class names.
        eps: radius of the attack in pixel units.

    Returns:
        For each classifier the probabilities before and after the attack, the adversarial picture
        and the magnified difference.

    Raises:
        ValueError: the picture is unreadable, or the class names are invalid.
    """
    image = pixels_of(tuner, path).to(tuner.clip.device)
    found: list[Any] = []
    for classifier in (tuner.clip.zero_shot(names), tuner.classifier_for(names)):
        adv = attacked(classifier, image, eps)
        found += [probabilities(classifier, image), probabilities(classifier, adv)]
        found += [shown(adv), shown(magnified(image, adv, eps))]
    return found


def make_page(tuner: Tuner) -> gr.Blocks:
    """Return the page."""

    def answer(path: str | None, text: str, units: float) -> list[Any]:
        if path is None:
            raise gr.Error("Drop a picture first.", print_exception=False)
        try:
            return compare(tuner, path, names_of(text), units / 255)
        except ValueError as error:
            message = str(error).removeprefix("data: ").replace(path, Path(path).name)
            raise gr.Error(message, print_exception=False) from None

    with gr.Blocks(title="fastprompt", analytics_enabled=False) as page:
        gr.Markdown(ABOUT.format(steps=STEPS, method=tuner.method, model=tuner.clip.name))
        with gr.Row():
            picture = gr.Image(
                label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"]
            )
            with gr.Column():
                names = gr.Textbox(
                    ", ".join(tuner.classnames), label="Class names", lines=3, max_lines=6
                )
                eps = gr.Slider(0, 8, 2, step=0.25, label="ε in 1/255")
                button = gr.Button("Classify and attack", variant="primary")
        results: list[Any] = []
        with gr.Row():
            for title in ("Zero-shot", "Tuned"):
                with gr.Column():
                    gr.Markdown(f"## {title}")
                    for when in ("before", "after"):
                        label = f"{title}, {when} the attack"
                        results.append(gr.Label(label=label, num_top_classes=5))
                    with gr.Row():
                        for what in ("adversarial", "difference"):
                            options: dict[str, Any] = {"min_width": 120, "buttons": ["fullscreen"]}
                            results.append(
                                gr.Image(label=what, format="png", interactive=False, **options)
                            )
        button.click(answer, [picture, names, eps], results, api_name="compare")
    return page


def launch(page: gr.Blocks, host: str, port: int) -> str:
    """Serve the page in a thread; return its address.

    Raises:
        OSError: the port is in use.
    """
    # Pillow refuses pictures with more than twice as many pixels
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            max_file_size=MOST_BYTES,
            share=False,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
        )
    except OSError:
        raise OSError(
            f"port: cannot listen on {host}:{port}; pass another --port or end the process that "
            "uses this one"
        ) from None
    return address


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder of fastprompt tune, or a repository, org/name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    given = parser.parse_args(arguments)
    try:
        page = make_page(AutoTuner.from_pretrained(given.run))
        print(f"open {launch(page, given.host, given.port)}", flush=True)
        page.block_thread()
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
