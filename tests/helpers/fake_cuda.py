"""Tensors on a GPU that is not there: what the code would launch, cast, copy and wait for.

A fake tensor has a shape, a dtype and a device, but no values. The code takes the branches that it
takes on a GPU, and each op it calls is seen by a dispatch mode. Triton kernels are not run: their
ops are called as on a GPU, and their fake implementations return the outputs.
"""

import dataclasses
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastprompt
from fastprompt.attacks.base import Batch
from fastprompt.attacks.slots import Run
from fastprompt.data import device_images, picture_crops
from fastprompt.tuning.cuda_graph import CapturedAscent
from fastprompt.tuning.tuner import Tuner
from helpers.plain_autograd import plain_autograd

CUDA = torch.device("cuda", 0)
_LIBRARY = str(Path(fastprompt.__file__).parent)
# ops whose result the host reads, or whose output's shape depends on values
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "bincount",
    "is_pinned",
}
_FREE = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "lift_fresh",
    "detach",
    "_unsafe_view",
}


class Seen(TorchDispatchMode):
    """Records what the ops that are called inside would do on a GPU.

    Attributes:
        syncs: copies between host and device, and waits of the host, with their place in the code.
        names: all ops, also those on the CPU.
        launches: ops that launch kernels, by name.
        casts: changes of dtype, by the tensor's shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
        self.names: set[str] = set()
        self.launches: Counter[str] = Counter()
        self.casts: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.names.add(name)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_gpu = any(t.device.type == "cuda" for t in given)
        if on_gpu and (name in _WAITING or _masked(name, args)):
            self._note(name)
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        on_gpu |= any(t.device.type == "cuda" for t in made)
        if on_gpu and _crossing(name, given, made):
            self._note(name)
        computes = not _view(func) and name not in _FREE and not name.startswith("prim::")
        if on_gpu and computes:
            self.launches[name] += 1
        if on_gpu and name == "_to_copy" and given[0].dtype != made[0].dtype:
            self.casts[tuple(given[0].shape)] += 1
        return out

    def _note(self, name: str) -> None:
        frames = traceback.extract_stack()
        own = [f for f in frames if f.filename.startswith(_LIBRARY)] or frames[-3:-2]
        self.syncs.append(f"{name} at {Path(own[-1].filename).name}:{own[-1].lineno}")


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *_: Any, **__: Any
) -> Tensor:
    """Fused attention: which of torch's kernels runs, only the driver can tell."""
    fused = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return fused(q, k, v, attn_mask, q.requires_grad or k.requires_grad)[0]


def _masked(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask, whose number of entries the host must know."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _crossing(name: str, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether data is copied between host and device; a kernel's argument may be a CPU scalar."""
    scalars = name not in ("copy_", "_to_copy", "index", "index_put_", "index_put")
    devices = {t.device.type for t in (*given, *made) if t.ndim or not scalars}
    return len(devices & {"cpu", "cuda"}) > 1


def _view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


@contextmanager
def no_waits() -> Iterator[Seen]:
    """Fail if the host waits for the GPU inside, or copies anything to or from it."""
    seen = Seen()
    try:
        with seen:
            yield seen
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass  # a fake tensor has no values; the op is in the list
    assert not seen.syncs, f"the host waits for the device: {seen.syncs}"


@contextmanager
def fake_cuda() -> Iterator[Callable[[Any], Any]]:
    """Enter a mode of fake tensors; yields a function that puts tensors and modules on the GPU."""
    known: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, whose id is the key
    replaced = (
        mock.patch.object(CapturedAscent, "obstacle", return_value="fake tensors have no graph"),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
        # reads a tensor on the CPU, once per epoch
        *(
            mock.patch.object(module, "check_order", return_value=None)
            for module in (device_images, picture_crops)
        ),
    )
    with ExitStack() as stack:
        for replacement in replaced:
            stack.enter_context(replacement)
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(plain_autograd())

        def moved(tensor: Tensor) -> Tensor:
            if id(tensor) not in known:
                fake = mode.from_tensor(tensor.detach()).to(CUDA)
                if isinstance(tensor, nn.Parameter):
                    fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                known[id(tensor)] = tensor, fake
            return known[id(tensor)][1]

        def put(thing: Any) -> Any:
            if isinstance(thing, Tensor):
                return moved(thing)
            for module in thing.modules():
                for tensors in (module._parameters, module._buffers):
                    stack.callback(tensors.update, dict(tensors))  # as it was, at the end
                    tensors.update({n: moved(t) for n, t in tensors.items() if t is not None})
            return thing

        yield put


def on_fake_cuda(tuner: Tuner, put: Callable[[Any], Any]) -> Tuner:
    """Move a tuner that is ready for its steps."""
    put(tuner.model)
    text: Any = tuner.model.text
    fields = {f.name: getattr(text.parts, f.name) for f in dataclasses.fields(text.parts)}
    moved = {n: put(v) for n, v in fields.items() if isinstance(v, (Tensor, nn.Module))}
    text.parts = dataclasses.replace(text.parts, **moved)
    text.open.set(text.parts)
    text.start = [put(t) for t in text.start]
    guide = getattr(tuner, "guide", None)
    for owner in (tuner.model.image, *(() if guide is None else (put(guide).image_tower,))):
        put(owner.visual)  # a copy in another precision, which is not registered
    for pictures in getattr(tuner, "_pictures", {}).values():
        pictures._device, pictures._white = CUDA, put(pictures._white)
        pictures._kept = tuple(map(put, pictures._kept))
    for name, bank in getattr(tuner, "_banks", {}).items():
        tuner._banks[name] = tuple(map(put, bank))
    return tuner


def put_attack(run: Run, put: Callable[[Any], Any]) -> None:
    """Move an attack on a batch that has not begun."""
    for owner in (run, run.search):
        vars(owner).update({n: put(t) for n, t in vars(owner).items() if isinstance(t, Tensor)})
    batch: Any = run.search.batch
    run.search.batch = Batch(put(batch.images), put(batch.labels), put(batch.indices))
