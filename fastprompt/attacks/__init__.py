"""Attacks in the L-inf ball in pixel space, intersected with the box [0, 1]."""

from .apgd import APGD
from .autoattack import AutoAttack
from .fab_square import FAB, Square
from .feature import FeaturePGD
from .health import GradientHealth
from .pgd import PGD
from .result import AttackResult

__all__ = [
    "APGD",
    "FAB",
    "PGD",
    "AttackResult",
    "AutoAttack",
    "FeaturePGD",
    "GradientHealth",
    "Square",
]
