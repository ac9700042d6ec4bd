"""What evaluations found, as a page to read and as tables for a paper."""

from .write import write_report

__all__ = ["write_report"]
