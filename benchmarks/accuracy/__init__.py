"""Accuracy of tuned prompts and strength of the attacks."""
