"""Collectives of the processes that tune together; in a single process they change nothing.

The processes are those of torch.distributed's default group, which ``torchrun`` and the command
line start, or the user's own code. All of them must call each function, in the same order. Values
travel as JSON and safetensors, not as pickles.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import shown

T = TypeVar("T")


def processes() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def is_first() -> bool:
    """Return whether this process writes files and shows progress: that of rank 0 does."""
    return rank() == 0


def own_part(rows: Tensor) -> Tensor:
    """Return this process's contiguous part of ``rows``, ``[N, ...]``; the first are longest."""
    return rows if processes() == 1 else rows.tensor_split(processes())[rank()]


# ---- sums and rows, on any device that the group supports --------------------------------------


def add_up_(*tensors: Tensor) -> None:
    """Replace tensors of one device by their sums over the processes, in a single all-reduce."""
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([t.detach().flatten() for t in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(total.view_as(tensor))


def total(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over the processes, differentiable in each process's term.

    The gradient is exact if each process runs backward through its share of one common loss.
    """
    if processes() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor)


def gather_rows(own: Tensor, rows: int) -> Tensor:
    """Join the parts of ``rows`` rows that `own_part` gave to the processes, ``[rows, ...]``.

    Backward adds up the processes' gradients of each row at the process that has it.
    """
    if processes() == 1:
        return own
    sizes = [len(part) for part in torch.arange(rows).tensor_split(processes())]
    more = sizes[0] - len(own)  # collectives need equal shapes
    whole = F.pad(own, (0, 0) * (own.ndim - 1) + (0, more)) if more else own
    parts = _AllGather.apply(whole)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _AllGather(torch.autograd.Function):
    """All-gather of equal shapes.

    That of torch.distributed.nn runs all-to-all in its backward, which gloo in torch 2.11 lacks.
    """

    @staticmethod
    def forward(own: Tensor) -> tuple[Tensor, ...]:
        own = own.contiguous()
        parts = tuple(torch.empty_like(own) for _ in range(processes()))
        dist.all_gather(list(parts), own)
        return parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        terms = [gradient.contiguous() for gradient in gradients]
        total = torch.empty_like(terms[0])
        dist.reduce_scatter(total, terms)
        return total


# ---- values ------------------------------------------------------------------------------------


def from_first(make: Callable[[], T]) -> T:
    """Return the JSON value that ``make`` returns in the first process, which alone calls it."""
    if processes() == 1:
        return make()
    sent = json.dumps(make()).encode() if is_first() else b""
    return json.loads(_broadcast(sent))


def tensors_from_first(tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """Return the first process's tensors, on the CPU; the others pass None."""
    if processes() == 1:
        assert tensors is not None
        return tensors
    got = _broadcast(b"" if tensors is None else _packed(tensors))
    return safetensors.torch.load(got) if tensors is None else tensors


def gather_tensors(tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """Return the tensors of each process, by rank, on the CPU; they may be empty."""
    if processes() == 1:
        return [tensors]
    return [safetensors.torch.load(each) for each in _gather(_packed(tensors))]


def check_same(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise ValueError in all processes unless ``facts`` returns equal JSON values in each."""
    if processes() == 1:
        return
    own = json.dumps([platform.node(), facts()]).encode()
    said = [json.loads(each) for each in _gather(own)]
    first_host, first = said[0]
    for number, (host, other) in enumerate(said):
        for name in first:
            if other.get(name) != first[name]:
                raise ValueError(
                    f"{name} must be the same in all processes, got {shown(first[name])} in "
                    f"process 0 ({first_host}) and {shown(other.get(name))} in process {number} "
                    f"({host}): start all with the same arguments, files and packages"
                )


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def _place() -> torch.device:
    """Return a device on which the group's collectives work."""
    if "cpu" in dist.get_backend_config() or dist.get_backend() == "gloo":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _broadcast(data: bytes) -> bytes:
    """Return the first process's bytes."""
    length = torch.tensor([len(data)], device=_place())
    dist.broadcast(length, 0)
    buffer = _buffer(data, int(length))
    dist.broadcast(buffer, 0)
    return data or buffer.cpu().numpy().tobytes()


def _gather(data: bytes) -> list[bytes]:
    """Return the bytes of each process."""
    lengths = [torch.zeros(1, dtype=torch.int64, device=_place()) for _ in range(processes())]
    dist.all_gather(lengths, torch.tensor([len(data)], device=_place()))
    sizes = [int(length) for length in lengths]
    buffers = [_buffer(b"", max(sizes)) for _ in sizes]
    dist.all_gather(buffers, _buffer(data, max(sizes)))
    return [b.cpu().numpy()[:size].tobytes() for b, size in zip(buffers, sizes, strict=True)]


def _buffer(data: bytes, size: int) -> Tensor:
    """Return ``size`` bytes on the group's device, of which ``data`` are the first."""
    return torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8).to(_place())
