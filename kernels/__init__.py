"""Fused operations under the towers and attacks: one folder each, with a plain twin."""

from .pgd_step import apgd_step, momentum_step, pgd_step, pgd_step_
from .random_start import random_start

__all__ = ["apgd_step", "momentum_step", "pgd_step", "pgd_step_", "random_start"]
