"""Measures how the cost of a tuning step grows, or prints the table of the results.

python -m benchmarks.growth measure                     # all sweeps, writes the JSON file
python -m benchmarks.growth measure --sweeps batch      # one; keeps the file's other sweeps
python -m benchmarks.growth table                       # prints the file's table
"""

from jsonargparse import auto_cli

from .measure import measure, show

if __name__ == "__main__":
    auto_cli({"measure": measure, "table": show}, prog="python -m benchmarks.growth")
