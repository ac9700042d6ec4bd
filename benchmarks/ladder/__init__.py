"""The ladder of pytest-benchmark: its groups, tests, tables and regression guard."""
