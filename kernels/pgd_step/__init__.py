"""One projected sign step of an L-inf attack: PGD's and APGD's."""

from .op import apgd_step, pgd_step, pgd_step_

__all__ = ["apgd_step", "pgd_step", "pgd_step_"]
