"""Independent items of work, computed in this process or on the workers of a Ray cluster."""

from .base import HERE, Runner, Team, Work
from .choice import connected, runner_of
from .on_ray import Ray

__all__ = ["HERE", "Ray", "Runner", "Team", "Work", "connected", "runner_of"]
