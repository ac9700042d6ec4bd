"""Attacks in the L-inf ball in pixel space, intersected with the box [0, 1]."""

from .apgd import APGD
from .autoattack import AutoAttack
from .fab import FAB
from .feature import FeaturePGD
from .health import GradientHealth
from .pgd import PGD
from .result import AttackResult
from .square import Square
from .tpgd import TPGD
from .transfer import DIFGSM, MIFGSM, TIFGSM

__all__ = [
    "APGD",
    "DIFGSM",
    "FAB",
    "MIFGSM",
    "PGD",
    "TIFGSM",
    "TPGD",
    "AttackResult",
    "AutoAttack",
    "FeaturePGD",
    "GradientHealth",
    "Square",
]
