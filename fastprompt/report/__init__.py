"""Reports of evaluations: an HTML page, and tables for papers."""

from .write import write_report

__all__ = ["write_report"]
