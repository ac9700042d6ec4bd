"""The methods against each other on the bundled models and data: what docs/results.md shows."""
