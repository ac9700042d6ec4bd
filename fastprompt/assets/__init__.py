"""Weights and model cards of the bundled models."""
