"""Attacks: the threat model is an L-inf ball in pixel space, met with the box [0, 1]."""

from .feature import FeaturePGD
from .health import GradientHealth
from .online import OnlinePGD
from .pgd import PGD
from .result import AttackResult

__all__ = ["PGD", "AttackResult", "FeaturePGD", "GradientHealth", "OnlinePGD"]
