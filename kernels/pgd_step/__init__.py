"""One projected sign step of an L-inf attack."""

from .op import pgd_step

__all__ = ["pgd_step"]
