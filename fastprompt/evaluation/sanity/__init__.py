"""Sanity checks that detect weak attacks and masked gradients.

After Carlini et al., "On evaluating adversarial robustness", 2019, section 5, and Athalye et al.,
"Obfuscated gradients give a false sense of security", ICML 2018, section 3.1. If a check fails, the
whole evaluation is not trusted.
"""

from .checks import FULL, QUICK, check_model
from .passes import Meter
from .reattack import Claim, check_claims, claims
from .rows import check_rows
from .verdict import Verdict

__all__ = [
    "FULL",
    "QUICK",
    "Claim",
    "Meter",
    "Verdict",
    "check_claims",
    "check_model",
    "check_rows",
    "claims",
]
