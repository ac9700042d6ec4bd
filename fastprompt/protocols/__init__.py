"""Protocols of the papers: a plan of runs over methods, data sets, shots and seeds."""

from .cells import PROTOCOLS
from .plan import Plan, make_plan
from .results import Table
from .running import execute, run

__all__ = ["PROTOCOLS", "Plan", "Table", "execute", "make_plan", "run"]
