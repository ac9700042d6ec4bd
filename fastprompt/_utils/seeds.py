"""Seeds made of seeds."""

import numpy as np


def stream(seed: int, part: str, number: int) -> int:
    """A seed for one part of many, in 32 bits: another seed or part gives another."""
    mixed = np.random.SeedSequence((seed, number, *part.encode()))
    return int(mixed.generate_state(1)[0])


def numbered_seed(seed: int, number: int) -> int:
    """The seed of one epoch, class or batch: no two are alike below 1,000,003 of them."""
    return seed * 1_000_003 + number
