"""``fastprompt export RUN``: write a run's classifier to a file that needs no fastprompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from .._utils.checks import check_count, check_path
from .._utils.files import write_bytes
from .._utils.names import unknown
from .._utils.progress import tell
from .._utils.run_folder import RunFolder
from ..data.dataset import batches, check_dataset
from ..data.load import Data
from ..evaluation.sampling import draw_rows
from ..interop.export_onnx import DEFAULT_OPSET, check_opset, check_runtime, runner
from ..interop.exporting import check_target, export, onnx_files
from ..methods.registry import TUNERS
from ..tuning.renamed import renamed_config
from ..tuning.tuner import Tuner
from .evaluate import DATA, data_of_run
from .parser import Parser

_ABOUT = (
    "Write the tuned classifier of a run to a file that needs no fastprompt. onnx and torch (a "
    "program of torch.export) hold the image encoder, prompts and class features: float32 pixels "
    "in [0, 1] to logits, for any batch. safetensors holds the class features alone."
)
_BATCH = 64


def export_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt export", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("run", type=str, help="run folder written by fastprompt tune")
    parser.add_argument(
        "--format",
        type=Literal["onnx", "torch", "safetensors"] | None,
        help="default: that of --out",
    )
    parser.add_argument(
        "--out", type=str | None, help="file to write: .onnx, .pt2 or .safetensors; required"
    )
    parser.add_argument(
        "--opset", type=int, default=DEFAULT_OPSET, help="version of the ONNX operators"
    )
    parser.add_argument(
        "--int8",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="store the weights of an ONNX file in 8 bits, and print the clean accuracy of the "
        "float32 and the int8 file on the run's test images; needs onnxruntime",
    )
    parser.add_argument(
        "--limit",
        type=int | None,
        default=400,
        help="number of test images for --int8; null for all",
    )
    parser.add_argument(
        "--data", type=str | None, help="test images for --int8; default: those of the run"
    )
    parser.add_argument("--root", type=str | None, help="root of the data set")
    return parser


def export_run(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    given = export_parser().parse_args(list(arguments)).as_dict()
    out = _checked(given)
    config = renamed_config(RunFolder(given["run"]).read_config())
    if config["method"] not in TUNERS:
        raise unknown("method", config["method"], TUNERS)
    # the test images first: a missing data set is told before the export
    data = _data(given, config) if given["int8"] else None
    tell(f"loading {given['run']}")
    tuner: Tuner = TUNERS[config["method"]].load(given["run"])
    if data is None:
        export(tuner, out, format=given["format"], opset=given["opset"])
    else:
        data = data.for_model(tuner.clip)
        if data.classnames != tuner.classnames:
            raise ValueError(f"data: {data.name} has other classes than the run; omit --data")
        check_dataset(data.test, "test", tuner.clip.pixel_shape, len(tuner.classnames))
        files = onnx_files(tuner, given["opset"], int8=True)
        print(_accuracies(files, data, given["limit"]))
        write_bytes(out, files[-1])
    print(f"{tuner.method} on {tuner.clip.name}, {len(tuner.classnames)} classes")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _checked(given: Mapping[str, Any]) -> Path:
    """Check the arguments before anything is loaded; return the file to write."""
    if given["out"] is None:
        raise ValueError("--out is required; pass the file to write")
    out, kind = check_target(given["out"], given["format"], int8=given["int8"])
    for name in ("run", "data", "root"):
        if given[name] is not None:
            check_path(given[name], name)
    if given["limit"] is not None:
        check_count(given["limit"], "limit")
    if kind == "onnx":
        check_opset(given["opset"])
    if given["int8"]:
        check_runtime()
    return out


def _data(given: Mapping[str, Any], config: Mapping[str, Any]) -> Data:
    return data_of_run({**dict.fromkeys(DATA), **given}, config)


def _accuracies(files: Sequence[bytes], data: Data, limit: int | None) -> str:
    """Return the clean accuracy of the float32 and the int8 file, and on which images."""
    rows = draw_rows(len(data.test), limit, seed=0)
    models, right = [runner(content) for content in files], [0, 0]
    for _, images, labels in batches(data.test, rows, _BATCH):
        for i, model in enumerate(models):
            right[i] += int((model(images).argmax(dim=1) == labels).sum())
    of = f" of {len(data.test):,}" if len(rows) < len(data.test) else ""
    single, small = (100 * torch.tensor(right) / len(rows)).tolist()
    return (
        f"clean accuracy on {len(rows):,}{of} test images of {data.name}: "
        f"float32 {single:.1f} %, int8 {small:.1f} %"
    )
