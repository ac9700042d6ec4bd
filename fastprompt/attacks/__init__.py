"""Attacks: the threat model is an L-inf ball in pixel space, met with the box [0, 1]."""

from .apgd import APGD
from .autoattack import AutoAttack
from .feature import FeaturePGD
from .health import GradientHealth
from .online import OnlinePGD
from .peers import FAB, Square
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
    "OnlinePGD",
    "Square",
]
