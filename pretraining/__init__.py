"""Training scripts of the bundled models. Not installed."""
