"""Random start of an attack: a uniform point of the ball, keyed by seed, image and restart."""

from .op import Sides, random_start

__all__ = ["Sides", "random_start"]
