"""Seeds derived from other seeds."""

import numpy as np


def stream(seed: int, part: str, number: int) -> int:
    """Derive an independent 32-bit seed from a seed, the name of a part and a number."""
    mixed = np.random.SeedSequence((seed, number, *part.encode()))
    return int(mixed.generate_state(1)[0])


def numbered_seed(seed: int, number: int) -> int:
    """Return the seed of an epoch, class or batch; distinct if ``number`` < 1,000,003."""
    return seed * 1_000_003 + number
