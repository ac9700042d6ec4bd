"""Tables of invalid input, one row per input; see "Hostile tests" in CONTRIBUTING.md."""
