"""A whole multi-step attack in one CUDA graph, captured once for each shape and replayed."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .ascent import ascend

log = logging.getLogger(__name__)

_WARM_UPS = 3  # eager runs before a capture: libraries and compiled code get ready in them
_SHAPES = 4  # graphs kept: a full batch and the last, smaller one, for training and validation


class CapturedAscent:
    """`ascend` of ``loss_of(images, *inputs)``, on a GPU as one CUDA graph.

    The graph reads what it needs from buffers of its own, which each call fills: nothing is frozen
    into it but eps, alpha, the number of steps, and the place of the parameters that ``loss_of``
    reads by itself (optimisers change those in place).

    Where a capture is impossible the attack runs step by step; the reason is logged once.

    Args:
        loss_of: images and further tensors to a scalar, summed over the batch.
        alpha, eps, steps: see `ascend`.
        capture: False never captures.
    """

    def __init__(
        self,
        loss_of: Callable[..., Tensor],
        *,
        alpha: float,
        eps: float,
        steps: int,
        capture: bool = True,
    ) -> None:
        self.loss_of = loss_of
        self.alpha, self.eps, self.steps = alpha, eps, steps
        self.reason = "" if capture else "not asked for"
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, x: Tensor, start: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last iterate, and int64 ``[B, 2]`` counts of zero and non-finite gradients.

        Args:
            x: clean images ``[B, 3, H, W]``, the centre of the ball.
            start: where the ascent starts.
            inputs: what ``loss_of`` takes behind the images.
        """
        given = (x, start, *inputs)
        if not self.reason:
            self.reason = self._obstacle(x)
            if self.reason and x.device.type != "cpu":
                log.warning("attack not captured in a CUDA graph: %s", self.reason)
        if self.reason:
            return self._steps(x, start, *inputs)
        key = tuple(None if t is None else (t.shape, t.dtype) for t in given)
        if key not in self._graphs:
            graph = self._capture(given)
            if graph is None:
                return self._steps(x, start, *inputs)
            if len(self._graphs) >= _SHAPES:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[key] = graph
        return self._graphs[key].replay(given)

    @staticmethod
    def _obstacle(x: Tensor) -> str:
        if x.device.type != "cuda":
            return f"the images are on {x.device.type}"
        return "another capture is under way" if torch.cuda.is_current_stream_capturing() else ""

    def _steps(self, x: Tensor, start: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        counts = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
        adv = ascend(
            lambda images: self.loss_of(images, *inputs),
            x,
            start,
            alpha=self.alpha,
            eps=self.eps,
            steps=self.steps,
            counts=counts,
        )
        return adv, counts

    def _capture(self, given: tuple[Any, ...]) -> "_Graph | None":
        try:
            return _Graph(self._steps, given)
        except RuntimeError as error:  # torch's CUDA errors are RuntimeErrors
            self.reason = " ".join(str(error).split())[:200]
            log.warning("attack not captured in a CUDA graph: %s", self.reason)
            return None


class _Graph:
    """A function captured on copies of its arguments."""

    def __init__(
        self, function: Callable[..., tuple[Tensor, Tensor]], given: tuple[Any, ...]
    ) -> None:
        self.buffers = [None if t is None else t.detach().clone() for t in given]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function(*self.buffers)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = function(*self.buffers)

    def replay(self, given: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Fill the buffers, run, and copy out what the next replay would overwrite."""
        for buffer, tensor in zip(self.buffers, given, strict=True):
            if buffer is not None:
                buffer.copy_(tensor)
        self.graph.replay()
        adv, counts = self.out
        return adv.clone(), counts.clone()
