"""Input defenses: pixels to pixels in front of any classifier, and open to the attack.

A defense that has no gradient, or draws at random, stops an attack that does not look, and protects
nothing: Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018. So those
without a derivative are given one (BPDA there, section 4.1: the identity's, or that of a smooth
model), the others have their own, and `Defended` says whether it is random, for the attack to
average its gradients.
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
