"""Random streams that never meet."""

import numpy as np


def stream(seed: int, part: str, number: int) -> int:
    """A seed for one part of many, in 32 bits: another seed or part gives another."""
    mixed = np.random.SeedSequence((seed, number, *part.encode()))
    return int(mixed.generate_state(1)[0])
