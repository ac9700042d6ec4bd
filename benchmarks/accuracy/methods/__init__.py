"""Comparison of the methods on the bundled models and data; source of docs/results.md."""
