"""What the commands share: one-line errors, and the options that name a model."""

import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import ArgumentParser

from .._utils.names import nearest
from ..clip import bundled
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip


class Parser(ArgumentParser):
    """Errors in one line, with the nearest options offered."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        for flag in dict.fromkeys(re.findall(r"--[A-Za-z_][\w-]*", text)):
            known = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
            if flag not in known and "nrecognized" in text:
                text = f"unknown option {flag}: {nearest(flag, known)}"
                break
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2)


def add_model(parser: Parser) -> None:
    """The options that `model_of` reads."""
    parser.add_argument("--clip", type=str, default=bundled.DEFAULT, help="model name")
    parser.add_argument("--pretrained", type=str | None, help="weight tag or checkpoint")
    parser.add_argument("--image_weights", type=str | None, help="file for the image tower alone")
    parser.add_argument("--device", type=str | None, help="default: a GPU if there is one")


def add_sanity(parser: Parser) -> None:
    """How thoroughly an evaluation is checked."""
    parser.add_argument(
        "--sanity",
        type=Literal["off", "quick", "full"],
        default="quick",
        help="checks of the result: none, on a few images, or all of them on more images",
    )


def model_of(job: Mapping[str, Any]) -> FrozenCLIP:
    """The model that the options name."""
    return load_clip(
        job["clip"],
        job["pretrained"],
        image_weights=job["image_weights"],
        device=device_name(job["device"]),
    )


def device_name(name: str | None) -> str:
    """The device that is asked for, by default a GPU if there is one.

    Raises:
        ValueError: no device's name, or a GPU where there is none.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ValueError(f"device must be such as cpu or cuda:0, got {name!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: there is no GPU for {name!r} here: use cpu")
    return name
