"""Helpers that do not depend on CLIP."""
