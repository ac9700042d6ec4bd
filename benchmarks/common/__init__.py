"""What the benchmarks share: models, rungs, timing, the machine, result files."""
