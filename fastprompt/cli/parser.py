"""Parser with one-line errors, and the options that select a model, for all commands."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import ArgumentParser

from .._utils.devices import usable_device
from .._utils.names import nearest
from .._utils.plain_yaml import check_plain
from ..clip import bundled
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip
from ..evaluation.search import SearchPrecision
from ..runners import HERE, Ray, Runner, runner_of
from .processes import own_device

_LONGEST = 500  # characters of an error message
_LOCAL = "local"  # --ray without an address
_TRANSFORMERS = "transformers:"  # begins the names of models of transformers


class Parser(ArgumentParser):
    """Argument parser that prints one-line errors and suggests the nearest option names.

    Options may be written with dashes in the place of underscores.
    """

    def parse_args(  # type: ignore[override]  # argparse's overloads differ from jsonargparse's
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Any:
        """Parse the arguments; numbers are accepted in decimal notation only."""
        if args is not None:
            args = [self._spelled(word) for word in args]
            self._check_numbers(args)
        return super().parse_args(args, *rest, **options)

    def _spelled(self, word: str) -> str:
        option, equals, value = word.partition("=")
        own = f"--{option[2:].replace('-', '_')}"
        known = option.startswith("--") and own in self._option_string_actions
        return f"{own}{equals}{value}" if known else word

    def _check_numbers(self, args: Sequence[str]) -> None:
        kinds = {
            o: getattr(a, "_typehint", a.type) for a in self._actions for o in a.option_strings
        }
        flag = ""
        for argument in args:
            value: str | None = argument
            if argument.startswith("--"):
                flag, given, value = argument.partition("=")
                if not given:
                    continue
            try:
                check_plain(value, flag, kinds.get(flag, str))
            except ValueError as error:
                self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        for flag in dict.fromkeys(re.findall(r"--[A-Za-z_][\w-]*", text)):
            known = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
            if flag not in known and "nrecognized" in text:
                text = f"unknown option {flag}: {nearest(flag, known)}"
                break
        print(
            f"error: {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}", file=sys.stderr
        )
        raise SystemExit(2)


def add_model(parser: Parser) -> None:
    """Add the options that `model_of` reads."""
    parser.add_argument(
        "--clip",
        type=str,
        default=bundled.DEFAULT,
        help="CLIP model: a name of open_clip's, or transformers:FOLDER or transformers:ORG/NAME",
    )
    parser.add_argument("--pretrained", type=str | None, help="open_clip weight tag or checkpoint")
    parser.add_argument("--image_weights", type=str | None, help="weight file of the image encoder")
    parser.add_argument(
        "--image_size",
        type=int | None,
        help="input size of the image encoder; default: the model's own",
    )
    parser.add_argument("--device", type=str | None, help="default: cuda if available, else cpu")


def add_root(parser: Parser) -> None:
    """Add the options of `load_data` for the place of a data set."""
    parser.add_argument(
        "--root",
        type=str | None,
        help="root of CoOp's or torchvision's data sets, or of a manifest",
    )
    parser.add_argument(
        "--download", type=bool, default=False, help="let torchvision download the data set"
    )


def add_names(parser: Parser) -> None:
    """Add the options of `load_data` for names, templates and unreadable images."""
    parser.add_argument(
        "--classnames",
        type=str | None,
        help="file of class names: JSON or YAML from folder to name, or text with one name or "
        "FOLDER NAME per line",
    )
    parser.add_argument(
        "--templates",
        type=str | None,
        help="zero-shot template such as 'a photo of a {}.', or file with one per line",
    )
    parser.add_argument(
        "--on_error",
        type=Literal["raise", "skip"] | None,
        help="skip: leave out the unreadable images of a folder; default: raise an error",
    )


def add_checks(parser: Parser) -> None:
    """Add the options of `evaluate` that decide how far its result can be trusted."""
    parser.add_argument(
        "--sanity",
        type=Literal["off", "quick", "full"],
        default="quick",
        help="sanity checks: off, quick (most checks, few images) or full (all checks, more "
        "images)",
    )
    parser.add_argument(
        "--search_precision",
        type=SearchPrecision,
        default="auto",
        help="precision in which attacks search; predictions are always the model's own. auto: "
        "bf16 where the device multiplies it natively (on a CPU only in parts of autoattack), else "
        "own (that of the model)",
    )
    parser.add_argument(
        "--confirm",
        type=bool,
        default=True,
        help="attack images that stand after a search in another precision again in the model's "
        "own",
    )


def add_workers(parser: Parser) -> None:
    """Add ``--workers``."""
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that decode images; 0: none of their own"
    )


def add_ray(parser: Parser, what: str) -> None:
    """Add ``--ray``, which `runner_in` reads; it is no setting, and not recorded."""
    parser.add_argument(
        "--ray",
        type=str | None,
        nargs="?",
        const=_LOCAL,
        metavar="ADDRESS",
        help=f"compute {what} on the workers of the Ray cluster at HOST:PORT, or on auto, the one "
        "that runs here; without an address, on a new one on this machine; needs fastprompt[ray]",
    )


def runner_in(given: dict[str, Any], threads: int = 1) -> Runner:
    """Take ``--ray`` out of the arguments, and return the runner that it stands for."""
    address = given.pop("ray", None)
    if address is None:
        return HERE
    try:
        own = Ray(None if address == _LOCAL else address, threads=threads)
    except ValueError as error:
        raise ValueError(f"--ray: {error}") from None
    return runner_of(own)


def check_only_resumed(given: Mapping[str, Any], file: str) -> None:
    """Raise ValueError if further options were given beside ``--resume`` and ``--ray``."""
    others = [k for k, v in given.items() if k not in ("resume", "ray") and v is not None]
    if others:
        raise ValueError(
            f"--resume takes all settings from the folder's {file}; remove all other options"
        )


def model_of(job: Mapping[str, Any]) -> FrozenCLIP:
    """Load the model that the options select."""
    theirs = job["clip"].startswith(_TRANSFORMERS)
    return load_clip(
        job["clip"].removeprefix(_TRANSFORMERS),
        job["pretrained"],
        image_weights=job["image_weights"],
        image_size=job["image_size"],
        source="transformers" if theirs else "open_clip",
        device=device_name(job["device"]),
    )


def device_name(name: str | None) -> str:
    """Return the requested device, by default a GPU if one is available.

    Of several processes, each gets its own GPU.

    Raises:
        ValueError: ``name`` is not a device name, or no such device is supported or available, or
            it is a single GPU for several processes.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return str(usable_device(own_device(usable_device(name))))
