"""Classes that several processes divide among themselves for the text encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.checks import check_count
from .._utils.distributed import gather_rows, own_part, processes


class ClassShards:
    """Divides C classes among the processes, and joins their class features again.

    Args:
        count: 1 for no division, or the number of processes.
        classes: number of classes, C.
        engine: engine of the model.

    Raises:
        ValueError: ``count`` is another number or above C, or the engine encodes all classes.
        TypeError: ``count`` is not an integer.
    """

    def __init__(self, count: int, classes: int, engine: str) -> None:
        self.count, self.classes = check_count(count, "class_shards"), classes
        if count > 1 and engine == "reference":
            raise ValueError(
                f"class_shards must be 1 with engine='reference', which encodes all classes at "
                f"once, got {count}"
            )
        if count not in (1, processes()):
            raise ValueError(
                f"class_shards must be 1 or the number of processes, {processes()}, got {count}: "
                "start as many processes, such as with torchrun"
            )
        if count > classes:
            raise ValueError(
                f"class_shards must be at most the number of classes, {classes}, got {count}"
            )

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's rows of ``[C, ...]``."""
        return rows if self.count == 1 else own_part(rows)

    def own_names(self, names: Sequence[str]) -> list[str]:
        """Return the names of this process's classes."""
        return [names[int(i)] for i in self.own(torch.arange(self.classes))]

    def join(self, features: Tensor) -> Tensor:
        """Join the processes' features ``[K?, own classes, D]`` to ``[K?, C, D]``.

        The gradient of each class is added up at the process that encodes it.
        """
        if self.count == 1:
            return features
        return gather_rows(features.movedim(-2, 0), self.classes).movedim(0, -2)
