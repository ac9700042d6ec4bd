"""One projected sign step of an L-inf attack: PGD's, APGD's and MI-FGSM's."""

from .op import apgd_step, momentum_step, pgd_step, pgd_step_

__all__ = ["apgd_step", "momentum_step", "pgd_step", "pgd_step_"]
