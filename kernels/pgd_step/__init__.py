"""Projected sign steps of L-inf attacks: PGD and APGD."""

from .op import apgd_step, pgd_step, pgd_step_

__all__ = ["apgd_step", "pgd_step", "pgd_step_"]
