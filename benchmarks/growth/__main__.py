"""How the cost of a tuning step grows: measure it, or print the table of what was measured.

python -m benchmarks.growth measure                     # all sweeps, writes the JSON file
python -m benchmarks.growth measure --sweeps batch      # one; the others stay as the file has them
python -m benchmarks.growth table                       # the file's table
"""

from jsonargparse import auto_cli

from .measure import measure, show

if __name__ == "__main__":
    auto_cli({"measure": measure, "table": show})
