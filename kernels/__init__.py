"""Fused operations under the towers and attacks: one folder each, with a plain twin."""

from .pgd_step import pgd_step

__all__ = ["pgd_step"]
