"""Times predictions on 1,000 pictures, or prints the table of the results.

python -m benchmarks.inference measure             # both models, writes the JSON file
python -m benchmarks.inference measure --images 64 --rounds 1 --out try.json   # a small check
python -m benchmarks.inference table               # prints the file's table
"""

from jsonargparse import auto_cli

from .measure import measure, show

if __name__ == "__main__":
    auto_cli({"measure": measure, "table": show}, prog="python -m benchmarks.inference")
