"""``fastprompt predict RUN PATH...``: predict the classes of pictures."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .._utils.checks import check_count, check_number, check_path
from .._utils.names import unknown
from .._utils.printable import printable
from .._utils.progress import Progress, tell
from .._utils.run_folder import RunFolder
from ..data.naming import class_file
from ..inference.chunks import decoders, run_on
from ..inference.job import Job
from ..inference.predicting import probabilities_of
from ..inference.running import BATCH, Part, told, usable_workers
from ..inference.sources import Picture, find_pictures
from ..inference.tables import check_format
from ..methods.registry import TUNERS
from ..model.classifier import CLIPClassifier
from ..runners import Runner, connected
from ..tuning.identity import clip_of
from ..tuning.renamed import renamed_config
from ..tuning.tuner import Tuner
from .parser import Parser, add_ray, device_name, runner_in

_ABOUT = (
    "Predict the classes of pictures with a run's prompts. With --out, a command that was stopped "
    "goes on where it was when it is run again. The exit code is 1 if no picture can be read."
)
_SHOWN = 10  # pictures that could not be read


def predict_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt predict", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("run", type=str, help="run folder written by fastprompt tune")
    parser.add_argument(
        "paths",
        type=str,
        nargs="+",
        help="pictures, folders, patterns such as 'a/**/*.png', manifests (.csv, .jsonl), tar "
        "files",
    )
    parser.add_argument(
        "--classes",
        type=str | None,
        help="file with one class name per line; default: the classes of the run",
    )
    parser.add_argument("--top", type=int, default=5, help="classes of each picture")
    parser.add_argument(
        "--out",
        type=str | None,
        help=".csv, .jsonl or .parquet file to write; default: print the predictions",
    )
    parser.add_argument(
        "--embeddings", type=str | None, help=".npz file of the image features to write"
    )
    parser.add_argument(
        "--temperature",
        type=float | None,
        help="divides the logits; default: that of evaluate --calibrate, else 1",
    )
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument(
        "--workers", type=int | None, help="decoding threads; default: one per processor, up to 8"
    )
    parser.add_argument(
        "--precision", type=str | None, help="of the image encoder; default: that of the run"
    )
    parser.add_argument("--device", type=str | None, help="default: cuda if available, else cpu")
    add_ray(parser, "the predictions")
    return parser


def predict_pictures(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    given = predict_parser().parse_args(list(arguments)).as_dict()
    runner = runner_in(given)
    config = _check(given)
    names = None if given["classes"] is None else class_file(Path(given["classes"]), "classes")
    usable_workers(given["workers"])
    pictures = find_pictures(given["paths"])
    with connected(runner):
        tell(f"loading {given['run']}")
        return _predict(given, _classifier(given, config, names), pictures, runner)


def _predict(
    given: Mapping[str, Any],
    classifier: CLIPClassifier,
    pictures: Sequence[Picture],
    runner: Runner,
) -> int:
    workers = decoders(given["workers"], runner, classifier.clip.device)
    temperature = _temperature(given, classifier)
    top = min(given["top"], len(classifier.classnames))
    if given["out"] is None:
        # in a terminal, the lines themselves show how far it is
        show = not sys.stdout.isatty()
        with Progress(len(pictures), "predict", "img", show=show) as bar:
            how = given["batch"], workers, bar
            parts = run_on(runner, classifier, pictures, *how, every=pictures)
            return _print(told(parts, bar), pictures, classifier, top, temperature)
    job = Job(
        classifier,
        pictures,
        Path(given["out"]),
        None if given["embeddings"] is None else Path(given["embeddings"]),
        top=top,
        batch=given["batch"],
        workers=workers,
        temperature=temperature,
        run=given["run"],
        runner=runner,
    )
    try:
        found = job.write()
    except KeyboardInterrupt:
        print("to go on where it stopped, run the same command again", file=sys.stderr)
        raise
    _tell_unread(found["unread"], str(job.record))
    print(f"predictions of {found['read']:,} pictures: {given['out']}")
    if given["embeddings"] is not None:
        print(f"embeddings: {given['embeddings']}")
    return 0 if found["read"] else 1


def _check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments before anything is loaded; return the run's ``config.json``."""
    check_count(given["top"], "top")
    check_count(given["batch"], "batch")
    if given["temperature"] is not None:
        check_number(given["temperature"], "temperature", above=0)
    if given["out"] is not None:
        check_format(check_path(given["out"], "out"))
    elif given["embeddings"] is not None:
        raise ValueError("embeddings needs --out, the file of the predictions")
    if given["embeddings"] is not None and Path(given["embeddings"]).suffix != ".npz":
        raise ValueError(f"embeddings must end in .npz, got {given['embeddings']!r}")
    device_name(given["device"])
    config = renamed_config(RunFolder(check_path(given["run"], "run")).read_config())
    if config["method"] not in TUNERS:
        raise unknown("method", config["method"], TUNERS)
    if not config["classnames"]:
        raise ValueError(f"run: {given['run']} has no class names; restore its config.json")
    return config


def _classifier(
    given: Mapping[str, Any], config: Mapping[str, Any], names: Sequence[str] | None
) -> CLIPClassifier:
    source = config["clip"]["source"]
    clip = None if source is None else clip_of(config, device_name(given["device"]))
    tuner: Tuner = TUNERS[config["method"]].load(given["run"], clip)
    classifier = tuner.classifier_for(names, precision=given["precision"])
    return classifier.for_inference()


def _temperature(given: Mapping[str, Any], classifier: CLIPClassifier) -> float:
    """Return the temperature that was asked for, or that was fitted for these classes."""
    if given["temperature"] is not None:
        return float(given["temperature"])
    found = RunFolder(given["run"]).read_calibration()
    if found is None:
        return 1.0
    if found["classnames"] != classifier.classnames:
        print(
            "not calibrated: the run's temperature is for its own classes; --temperature sets one",
            file=sys.stderr,
        )
        return 1.0
    print(
        f"calibrated: temperature {found['temperature']:.4g}, fitted on {found['n']} validation "
        "images",
        file=sys.stderr,
    )
    return float(found["temperature"])


# ---- output ------------------------------------------------------------------------------------


def _print(
    parts: Iterator[Part],
    pictures: Sequence[Picture],
    classifier: CLIPClassifier,
    top: int,
    temperature: float,
) -> int:
    """Print a line per picture and return the exit code."""
    unread: dict[str, str] = {}
    for part in parts:
        shares, labels = probabilities_of(part.logits, temperature).topk(top)
        for place, chances, own in zip(part.read, shares.tolist(), labels.tolist(), strict=True):
            found = (
                f"{classifier.classnames[label]} {100 * share:.1f} %"
                for share, label in zip(chances, own, strict=True)
            )
            print(printable(f"{pictures[place].name}: {', '.join(found)}"), flush=True)
        unread |= {pictures[place].name: why for place, why in part.unread.items()}
    _tell_unread(unread)
    return 0 if len(unread) < len(pictures) else 1


def _tell_unread(unread: Mapping[str, str], record: str = "") -> None:
    if not unread:
        return
    shown = len(unread) if not record else _SHOWN
    for name, why in islice(unread.items(), shown):
        print(f"not read: {name}: {why}", file=sys.stderr)
    more = len(unread) - shown
    rest = f"; the other {more} are listed in {record}" if more > 0 else ""
    print(f"{len(unread)} of the pictures could not be read{rest}", file=sys.stderr)
