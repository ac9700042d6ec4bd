"""The verdict of a check."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Verdict:
    """The verdict of one check.

    Attributes:
        check: name of the check.
        verdict: whether it passed; ``skipped`` if it could not run.
        reason: the finding in words: why the check failed or was skipped.
        figures: measured values.
        decisive: whether the result is not trusted if the check is skipped: there was something to
            check, and no other check replaces this one.
    """

    check: str
    verdict: Literal["passed", "failed", "skipped"]
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    decisive: bool = False

    @staticmethod
    def of(check: str, reason: str, **figures: Any) -> "Verdict":
        """Return a failed verdict if there is a reason, else a passed one."""
        return Verdict(check, "failed" if reason else "passed", reason, figures)
