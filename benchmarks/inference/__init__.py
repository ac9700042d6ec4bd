"""Predictions of pictures against the loop that open_clip's users write."""
