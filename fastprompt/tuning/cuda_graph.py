"""A whole multi-step attack in one CUDA graph, captured once for each shape and replayed."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..attacks.ascent import Gradient, ascend, pixel_gradient

log = logging.getLogger(__name__)

_WARM_UPS = 3  # eager runs before a capture: libraries and compiled code get ready in them
_SHAPES = 4  # graphs kept: a full batch and the last, smaller one, for training and validation


class CapturedAscent:
    """`ascend` of ``loss_of(images, *inputs)``, on a GPU as one CUDA graph.

    The graph reads what it is called with from buffers of its own, which each call fills. Frozen
    into it are eps, alpha, the number of steps, and the place in memory of what ``loss_of`` reads
    by itself: changes in place are seen, a change of place makes a new graph.

    Where a capture fails the attack runs step by step from then on; the reason is logged.

    Args:
        loss_of: images and further tensors to a scalar, summed over the batch.
        reads: the tensors that ``loss_of`` reads by itself: weights, say.
        alpha, eps, steps: see `ascend`.
        capture: False never captures.
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
        capture: bool = True,
        gradient: Gradient = pixel_gradient,
    ) -> None:
        self.gradient = gradient
        self.loss_of, self.reads = loss_of, reads
        self.alpha, self.eps, self.steps = alpha, eps, steps
        self.failure = "" if capture else "not asked for"
        self._graphs: dict[Any, _Graph] = {}
        self._places: tuple[int, ...] = ()
        self._pool: Any = None

    def __call__(
        self, x: Tensor, start: Tensor, *inputs: Tensor | None, radius: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last iterate, and int64 ``[B, 2]`` counts of zero and non-finite gradients.

        Args:
            x: clean images ``[B, 3, H, W]``, the center of the ball.
            start: where the ascent starts.
            inputs: what ``loss_of`` takes behind the images.
            radius: each image's own in place of eps, ``[B]``; its steps are as much smaller.
        """
        given = (x, start, radius, *inputs)
        if self.obstacle(x):
            return self._steps(x, start, radius, *inputs)
        with torch.cuda.device(x.device):
            graph = self._graph(given)
            if graph is None:
                return self._steps(x, start, radius, *inputs)
            return graph.replay(given)

    def obstacle(self, x: Tensor) -> str:
        """Why an attack on ``x`` is not captured; empty if it is."""
        if self.failure:
            return self.failure
        if x.device.type != "cuda":
            return f"the images are on {x.device.type}"
        if not len(x):
            return "there are no images"
        return "another capture is under way" if torch.cuda.is_current_stream_capturing() else ""

    def _steps(
        self, x: Tensor, start: Tensor, radius: Tensor | None, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        alpha: float | Tensor = self.alpha
        eps: float | Tensor = self.eps
        if radius is not None:
            eps = radius
            # by a tensor: a GPU would multiply by a number's reciprocal, and a radius equal to eps
            # must give the bits of alpha
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
            gradient=self.gradient,
        )
        return adv, counts

    def _graph(self, given: tuple[Any, ...]) -> "_Graph | None":
        """The graph for arguments of these shapes; None if it can't be captured."""
        places = tuple(t.data_ptr() for t in self.reads())
        if places != self._places:
            self._graphs.clear()
            self._places = places
        key = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in given)
        graph = self._graphs.pop(key, None) or self._capture(given)
        if graph is not None:
            self._graphs[key] = graph  # behind the others: the first is the one not used longest
            if len(self._graphs) > _SHAPES:
                del self._graphs[next(iter(self._graphs))]
        return graph

    def _capture(self, given: tuple[Any, ...]) -> "_Graph | None":
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            return _Graph(self._steps, given, self._pool)
        except RuntimeError as error:  # torch's CUDA errors are RuntimeErrors
            self.failure = " ".join(str(error).split())[:200]
            log.warning("attack not captured in a CUDA graph: %s", self.failure)
            return None


class _Graph:
    """A function captured on copies of its arguments.

    Graphs share ``pool``: one replay is over before the next begins, and what is handed out is a
    copy.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, Tensor]], given: tuple[Any, ...], pool: Any
    ) -> None:
        self.buffers = [None if t is None else t.detach().clone() for t in given]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function(*self.buffers)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # other threads, such as a loader's that pins memory, may go on meanwhile
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.out = function(*self.buffers)

    def replay(self, given: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Fill the buffers, run, and copy out what the next replay would overwrite."""
        for buffer, tensor in zip(self.buffers, given, strict=True):
            if buffer is not None:
                buffer.copy_(tensor)
        self.graph.replay()
        adv, counts = self.out
        return adv.clone(), counts.clone()
