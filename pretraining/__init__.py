"""The scripts that make the bundled models. Not installed."""
