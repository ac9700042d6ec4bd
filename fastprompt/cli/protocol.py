"""``fastprompt protocol NAME``: run a protocol of the papers, or print its plan."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from .._utils.checks import MOST_THREADS, check_folder, check_path, shown
from .._utils.names import unknown
from .._utils.plain_yaml import load_yaml
from .._utils.printable import printable
from .._utils.progress import tell
from ..protocols import PROTOCOLS, Plan, execute, make_plan
from ..protocols.costs import describe
from ..protocols.running import FILE, read_plan
from ..protocols.tables import markdown
from ..runners import Ray, Runner, connected
from ..tuning.identity import clip_of
from .parser import Parser, add_model, add_ray, add_workers, check_only_resumed, model_of, runner_in

_RADII: Any = list[float | int | str] | float | int | str | None
_ABOUT = (
    "Tune and evaluate methods over data sets, shots and seeds, and write one table. --resume "
    "continues a plan that was stopped at any moment, --dry_run prints the plan and its cost."
)
_MODEL = ("clip", "pretrained", "image_weights", "image_size", "device")


def protocol_parser(name: str = "few-shot") -> Parser:
    """Build the parser of the command."""
    shots = " ".join(map(str, PROTOCOLS[name].shots))
    about = f"{PROTOCOLS[name].about.capitalize()}. {_ABOUT}"
    parser = Parser(prog=f"fastprompt protocol {name}", description=about, allow_abbrev=False)
    add_model(parser)
    parser.add_argument(
        "--methods",
        type=list[str] | str,
        default="zero-shot,coop,apt",
        help="comma-separated; coop is tuned on clean images",
    )
    parser.add_argument(
        "--data",
        type=list[str] | str,
        help="comma-separated data sets; cross-dataset and domain-shift tune on the first one",
    )
    parser.add_argument("--root", type=str | None, help="root of CoOp's or torchvision's data sets")
    parser.add_argument(
        "--shots",
        type=int | Literal["all"],
        nargs="+",
        help=f"images per class; default: {shots}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--config",
        type=str | None,
        help="YAML or JSON file of settings by method; those of 'all' are of all methods",
    )
    parser.add_argument(
        "--eps",
        type=float | int | str | None,
        help="radius of tuning of all methods; default: that of each",
    )
    parser.add_argument(
        "--attacks",
        type=list[str] | str | None,
        help="comma-separated attacks of the evaluation; default: pgd-20, or the paper's",
    )
    parser.add_argument(
        "--eval_eps",
        type=_RADII,
        help="radii of the evaluation; default: the paper's, --eps or 4/255",
    )
    parser.add_argument(
        "--limit", type=int | None, help="number of test images, drawn by seed 0; default: all"
    )
    parser.add_argument("--batch", type=int, default=100)
    add_workers(parser)
    parser.add_argument("--sanity", type=Literal["off", "quick", "full"], default="quick")
    parser.add_argument(
        "--scoring",
        type=str,
        default="strict",
        help="strict; published: each method as its paper does; or published:PAPER, all as one "
        "paper does (nap, fap, tapt, advpt)",
    )
    parser.add_argument("--out", type=str | None, help="folder to write")
    parser.add_argument("--resume", type=str | None, help="folder to resume")
    add_ray(parser, "the cells")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan and its cost, and write nothing"
    )
    return parser


def protocol(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: fastprompt protocol NAME [options]\nprotocols:")
        for name, kind in PROTOCOLS.items():
            print(f"  {name:<15}{kind.about}")
        print("fastprompt protocol NAME --help lists the options")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    parser = protocol_parser(name)
    given = parser.parse_args(list(arguments[1:])).as_dict()
    runner = runner_in(given)
    resume, out = (check_folder(given[key], f"--{key}") for key in ("resume", "out"))
    if resume is not None:
        check_only_resumed(parser.parse_args(list(arguments[1:]), defaults=False).as_dict(), FILE)
    elif out is None and not given["dry_run"]:
        raise ValueError("--out is needed: pass the folder to write, or --dry_run")
    with contextlib.nullcontext() if given["dry_run"] else connected(runner):
        return _run(name, given, out, resume, runner)


def _run(
    name: str, given: Mapping[str, Any], out: Path | None, resume: Path | None, runner: Runner
) -> int:
    if resume is not None:
        plan, out = _stored(name, resume), resume
        if isinstance(runner, Ray):  # the result's bits depend on it
            runner = replace(runner, threads=torch.get_num_threads())
    else:
        plan = _planned(name, given)
    if given["dry_run"]:
        print(printable(describe(plan), keep="\n"))
        return 0
    assert out is not None
    try:
        table = execute(plan, out, resume=resume is not None, runner=runner)
    except KeyboardInterrupt:
        print(f"to resume: fastprompt protocol {name} --resume {out}", file=sys.stderr)
        raise
    print(f"\n{markdown(table)}\nfolder: {out}")
    return 0


def _planned(name: str, given: Mapping[str, Any]) -> Plan:
    if given["data"] is None:
        raise ValueError("--data is needed: pass the data sets")
    settings = _settings(given["config"])
    known = (*_MODEL, "config", "out", "resume", "dry_run", "ray")
    options = {key: value for key, value in given.items() if key not in known}
    tell(f"loading {given['clip']}")
    return make_plan(name, clip=model_of(given), settings=settings, **options)


def _settings(path: str | None) -> dict[str, Any]:
    """Read the settings of each method."""
    if path is None:
        return {}
    if not check_path(path, "config").is_file():
        raise FileNotFoundError(f"config: file {path} does not exist")
    try:
        found = load_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not valid YAML or JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(own, dict) for own in found.values()):
        raise ValueError(f"config: {path} must have settings by method, got {shown(found)}")
    return found


def _stored(name: str, folder: Path) -> Plan:
    """Read the plan of a folder, which may have been edited, and check it again."""
    found = read_plan(folder)
    facts, threads = dict(found["plan"]), found.get("threads")
    if facts.get("protocol") != name:
        raise ValueError(f"--resume: {folder} holds {facts.get('protocol')!r}, not {name!r}")
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"--resume: {folder / FILE} has an invalid threads; it is damaged")
    torch.set_num_threads(threads)  # the result's bits depend on it
    tell(f"loading {facts['clip']['name']}")
    clip = clip_of(facts, facts.pop("device"))
    facts.pop("clip")
    facts.pop("protocol")
    for key in ("contents", "presets"):  # those of today are compared when the plan is resumed
        facts.pop(key, None)
    return make_plan(name, clip=clip, **facts)
