"""ONNX files of exported classifiers, in float32 and with weights in int8."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from .._utils.checks import check_count
from .._utils.unpickling import first_line

OLDEST_OPSET = 18  # the oldest that torch's exporter writes
DEFAULT_OPSET = 18
_MOST_BYTES = 2**31 - 1  # of a protobuf message
_PRODUCTS = ("MatMul", "Gemm")
INPUT, OUTPUT = "pixels", "logits"


def check_opset(opset: int) -> int:
    """Return ``opset`` if the installed onnx and torch's exporter know it.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError, ValueError: it is not an integer, too old or too new.
    """
    onnx = _import("onnx")
    _import("onnxscript")
    if isinstance(opset, int) and not isinstance(opset, bool) and opset < OLDEST_OPSET:
        raise ValueError(
            f"opset must be at least {OLDEST_OPSET}, the oldest that torch's exporter writes, got "
            f"{opset}"
        )
    return check_count(opset, "opset", most=int(onnx.defs.onnx_opset_version()))


def check_runtime() -> None:
    """Raise ImportError if ONNX Runtime, which quantizes and runs files, is not installed."""
    _import("onnxruntime")


def to_onnx(program: ExportedProgram, opset: int, metadata: Mapping[str, str]) -> bytes:
    """Return the ONNX file of a traced classifier.

    Raises:
        ValueError: torch cannot convert the program to this opset, or the file is above 2 GB.
    """
    onnx, optimizer = _import("onnx"), _import("onnxscript.optimizer")
    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert converted is not None
            # by default, large weights are transposed in each run, and so not quantized
            limits = {"input_size_limit": _MOST_BYTES, "output_size_limit": _MOST_BYTES}
            optimizer.fold_constants(converted.model, **limits)
            optimizer.remove_unused_nodes(converted.model)
            model = converted.model_proto
    except Exception as error:  # of the exporter and its optimizer
        raise ValueError(
            f"opset: the export to opset {opset} failed: {first_line(error)}"
        ) from error
    got = next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
    if got != opset:
        raise ValueError(f"opset: torch wrote opset {got} instead of {opset}; pass opset={got}")
    _name_batch(model)
    return _finished(onnx, model, metadata)


def to_int8(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the ONNX file with the weights of the image encoder's blocks in int8.

    The products are quantized dynamically. The patch embedding and what follows the image
    encoder stay in float32: they are small, and rounding there costs most.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    _import("onnxruntime")
    onnx = _import("onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        given.write_bytes(content)
        quantize_dynamic(
            given,
            made,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_PRODUCTS),
            nodes_to_exclude=_in_float(onnx.load_from_string(content).graph.node),
            per_channel=True,
        )
        return _finished(onnx, onnx.load(made), metadata)


def runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file in ONNX Runtime: pixels to logits.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    runtime = _import("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: pixels.numpy().astype(np.float32)})
        return torch.from_numpy(logits)

    return run


def _in_float(nodes: Sequence[Any]) -> list[str]:
    """Return the names of the first product and of those after the features' normalization."""
    end = next((i for i, node in enumerate(nodes) if node.op_type == "ReduceL2"), len(nodes))
    products = [(i, node.name) for i, node in enumerate(nodes) if node.op_type in _PRODUCTS]
    return [name for k, (i, name) in enumerate(products) if k == 0 or i > end]


def _name_batch(model: Any) -> None:
    """Call the batch dimension ``batch``; torch numbers it."""
    graph = model.graph
    (own,) = (v.type.tensor_type.shape.dim[0].dim_param for v in graph.input)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(own, "batch")


def _finished(onnx: Any, model: Any, metadata: Mapping[str, str]) -> bytes:
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = "fastprompt"
    size = model.ByteSize()
    if size > _MOST_BYTES:
        raise ValueError(
            f"format: an ONNX file holds at most 2 GB, this model needs {size / 1e9:.1f} GB; use "
            "format='torch'"
        )
    onnx.checker.check_model(model)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = "onnxruntime" if name == "onnxruntime" else "'fastprompt[export]'"
        raise ImportError(f"export: {name} is needed ({error}): pip install {extra}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress and advice of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
