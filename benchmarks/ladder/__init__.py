"""The ladder of pytest-benchmark: its groups, its tests, its tables, its guard."""
