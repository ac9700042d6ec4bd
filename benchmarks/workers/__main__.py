"""Times the bank and an evaluation on Ray workers, or prints the table of the results.

python -m benchmarks.workers measure               # two workers of one thread, writes the JSON file
python -m benchmarks.workers measure --images 96 --rounds 1 --out try.json   # a small check
python -m benchmarks.workers table                 # prints the file's table
"""

from jsonargparse import auto_cli

from .measure import measure, show

if __name__ == "__main__":
    auto_cli({"measure": measure, "table": show}, prog="python -m benchmarks.workers")
