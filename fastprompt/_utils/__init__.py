"""Small helpers that know nothing of CLIP."""
