"""Times predictions on 1,000 pictures, or prints the table; counts what int8 files get right.

python -m benchmarks.inference measure             # both models, writes the JSON file
python -m benchmarks.inference measure --images 64 --rounds 1 --out try.json   # a small check
python -m benchmarks.inference table               # prints the file's table
python -m benchmarks.inference int8                # accuracies of int8 files; needs onnxruntime
"""

from jsonargparse import auto_cli

from .int8 import compare
from .measure import measure, show

if __name__ == "__main__":
    auto_cli(
        {"measure": measure, "table": show, "int8": compare}, prog="python -m benchmarks.inference"
    )
