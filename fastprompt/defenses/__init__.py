"""Input defenses: image transforms in front of any classifier, differentiable for adaptive attacks.

A defense without a gradient, or a randomized one, stops only attacks that do not adapt to it:
Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018. Non-differentiable
defenses therefore use BPDA (section 4.1 there) with the gradient of the identity or of a smooth
approximation; the others use their own gradient. `Defended.randomized` tells whether an attack
should average gradients.
"""

from .base import Defense, straight_through
from .defended import Defended
from .parse import parse_defenses
from .resampled import GaussianSmoothing, RandomResizePad
from .rounded import JPEG, BitDepth

__all__ = [
    "JPEG",
    "BitDepth",
    "Defended",
    "Defense",
    "GaussianSmoothing",
    "RandomResizePad",
    "parse_defenses",
    "straight_through",
]
