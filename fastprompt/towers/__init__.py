"""Prompts and frozen weights to features."""

from .text import TextTower

__all__ = ["TextTower"]
