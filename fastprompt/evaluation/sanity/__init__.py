"""Does a robust accuracy mean what it says? Checks that find a weak attack or a hidden gradient.

After Carlini et al., "On evaluating adversarial robustness", 2019, section 5, and Athalye et al.,
"Obfuscated gradients give a false sense of security", ICML 2018, section 3.1. A failed check makes
the whole evaluation one that is not to be trusted.
"""

from .checks import FULL, QUICK, check_model
from .reattack import Claim, check_claims, claims
from .rows import check_rows
from .verdict import Verdict

__all__ = [
    "FULL",
    "QUICK",
    "Claim",
    "Verdict",
    "check_claims",
    "check_model",
    "check_rows",
    "claims",
]
