"""Independent items of work, computed in this process or on the workers of a Ray cluster."""

from .base import HERE, Runner, Team, Work
from .choice import runner_of
from .on_ray import Ray

__all__ = ["HERE", "Ray", "Runner", "Team", "Work", "runner_of"]
