"""What a check says."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Verdict:
    """Attributes:

    check: its name.
    verdict: whether it passed; ``skipped`` where it could not be made.
    reason: what was found, in words: why it failed, or why it was skipped.
    figures: what was measured.
    """

    check: str
    verdict: Literal["passed", "failed", "skipped"]
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(check: str, reason: str, **figures: Any) -> "Verdict":
        """Failed if there is a reason, passed otherwise."""
        return Verdict(check, "failed" if reason else "passed", reason, figures)
