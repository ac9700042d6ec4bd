"""Weights and cards of the bundled models."""
