"""A multi-step attack as one CUDA graph, captured once per input shape and replayed."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..attacks.ascent import Clamp, Gradient, ascend, pixel_gradient

log = logging.getLogger(__name__)

_WARM_UPS = 3  # eager runs before a capture, which initialize libraries and compile code
_SHAPES = 4  # graphs kept, such as those of training and of validation


class CapturedAscent:
    """`ascend` on ``loss_of(images, *inputs)``, run as one CUDA graph on a GPU.

    Each call copies its arguments into the graph's input buffers. The graph fixes eps, alpha, the
    number of steps, and the addresses of the tensors that ``loss_of`` reads besides its arguments:
    in-place changes of these tensors take effect; a changed address leads to a new capture.

    If a capture fails, the reason is logged and all further attacks run step by step. If it runs
    out of memory, only the next attacks do, twice as many each time; then it is tried again.

    Args:
        loss_of: maps images and further tensors to a scalar loss, summed over the batch.
        reads: returns the tensors that ``loss_of`` reads besides its arguments, such as weights.
        alpha, eps, steps, clamp: see `ascend`.
        capture: if False, never capture a graph.
        gradient: see `ascend`.
    """

    def __init__(
        self,
        loss_of: Callable[..., Tensor],
        reads: Callable[[], Iterable[Tensor]] = tuple,
        *,
        alpha: float,
        eps: float,
        steps: int,
        clamp: Clamp = "always",
        capture: bool = True,
        gradient: Gradient = pixel_gradient,
    ) -> None:
        self.gradient = gradient
        self.loss_of, self.reads = loss_of, reads
        self.alpha, self.eps, self.steps = alpha, eps, steps
        self.clamp: Clamp = clamp
        self.failure = "" if capture else "not asked for"
        self._graphs: dict[Any, _Graph] = {}
        self._places: tuple[int, ...] = ()
        self._pool: Any = None
        self._pause = 0  # attacks that run step by step before the next capture
        self._longest = 1  # the pause after the next capture that runs out of memory

    def __call__(
        self, x: Tensor, start: Tensor, *inputs: Any, radius: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the last iterate, and int64 ``[B, 2]`` counts of zero and non-finite gradients.

        Args:
            x: clean images ``[B, C, H, W]``, the center of the ball.
            start: images at which the ascent starts.
            inputs: arguments of ``loss_of`` after the images: tensors, None, or tuples of them.
            radius: radius per image instead of eps, ``[B]``; alpha is scaled by ``radius / eps``.
        """
        given = (x, start, radius, *inputs)
        if self.obstacle(x):
            return self._steps(*given)
        with torch.cuda.device(x.device):
            leaves, structure = tree_flatten(given)
            graph = self._graph(leaves, structure)
            return self._steps(*given) if graph is None else graph.replay(leaves)

    def obstacle(self, x: Tensor) -> str:
        """Return why an attack on ``x`` is not captured; empty if it is."""
        if self.failure:
            return self.failure
        if x.device.type != "cuda":
            return f"the images are on {x.device.type}"
        if not len(x):
            return "there are no images"
        return "another capture is under way" if torch.cuda.is_current_stream_capturing() else ""

    def _steps(
        self, x: Tensor, start: Tensor, radius: Tensor | None, *inputs: Any
    ) -> tuple[Tensor, Tensor]:
        alpha: float | Tensor = self.alpha
        eps: float | Tensor = self.eps
        if radius is not None:
            eps = radius
            # divide by a tensor: for a Python number the GPU multiplies by the reciprocal, but a
            # radius equal to eps must give exactly alpha
            share = radius / radius.new_full((), self.eps or 1.0)
            alpha = share * self.alpha
        counts = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
        adv = ascend(
            lambda images: self.loss_of(images, *inputs),
            x,
            start,
            alpha=alpha,
            eps=eps,
            steps=self.steps,
            counts=counts,
            clamp=self.clamp,
            gradient=self.gradient,
        )
        return adv, counts

    def _graph(self, given: list[Any], structure: TreeSpec) -> "_Graph | None":
        """Return the graph for arguments of these shapes; None if the capture fails.

        ``structure`` restores the arguments; it does not vary between arguments of equal shapes.
        """
        places = tuple(t.data_ptr() for t in self.reads())
        if places != self._places:
            self._graphs.clear()
            self._places = places
        key = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in given)
        graph = self._graphs.pop(key, None) or self._capture(given, structure)
        if graph is not None:
            self._graphs[key] = graph  # at the end; the first entry is the least recently used
            if len(self._graphs) > _SHAPES:
                del self._graphs[next(iter(self._graphs))]
        return graph

    def _capture(self, given: list[Any], structure: TreeSpec) -> "_Graph | None":
        if self._pause:
            self._pause -= 1
            return None
        if not self._graphs:
            # the allocator frees a pool with its last graph, and then refuses its handle
            self._pool = torch.cuda.graph_pool_handle()

        def steps(*leaves: Any) -> tuple[Tensor, Tensor]:
            return self._steps(*tree_unflatten(leaves, structure))

        try:
            return _Graph(steps, given, self._pool)
        except RuntimeError as error:  # torch's CUDA errors are RuntimeErrors
            reason, memory = _reason(error)
            if memory:
                self._pause, self._longest = self._longest, 2 * self._longest
                then = f"the next {self._pause} attacks run step by step"
            else:
                self.failure, then = reason, "the attack runs step by step"
            log.warning("CUDA graph capture failed, %s: %s", then, reason, exc_info=True)
        if self._pause:  # after the error is gone, whose frames hold the attack's tensors
            self._graphs.clear()
            torch.cuda.empty_cache()
        return None


def _reason(error: BaseException) -> tuple[str, bool]:
    """Return the messages of the error and those before it, and whether memory ran out.

    The first error may be hidden: after it, the end of the capture fails too.
    """
    chain: list[BaseException] = []
    last: BaseException | None = error
    while last is not None:
        chain.append(last)
        last = last.__cause__ or last.__context__
    reason = ", after: ".join(" ".join(str(each).split())[:200] for each in chain)
    return reason, any(isinstance(each, torch.OutOfMemoryError) for each in chain)


class _Graph:
    """A function captured on copies of its arguments.

    Graphs share the memory ``pool``: replays do not overlap, and `replay` returns copies.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, Tensor]], given: Sequence[Any], pool: Any
    ) -> None:
        self.buffers = [None if t is None else t.detach().clone() for t in given]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function(*self.buffers)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # other threads, such as a data loader's that pins memory, may use CUDA during the capture
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.out = function(*self.buffers)

    def replay(self, given: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Fill the buffers, replay, and copy the outputs, which the next replay overwrites."""
        for buffer, tensor in zip(self.buffers, given, strict=True):
            if buffer is not None:
                buffer.copy_(tensor)
        self.graph.replay()
        adv, counts = self.out
        return adv.clone(), counts.clone()
