"""Benchmarks of speed and accuracy; ``results/`` contains their result files."""
