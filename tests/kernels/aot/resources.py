"""Registers, spills and shared memory of every kernel, for every target.

python tests/kernels/aot/resources.py            # write resources.json anew
python tests/kernels/aot/resources.py pgd_step  # only print, for one op
"""

import json
import sys
import tempfile
from pathlib import Path

import triton

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def main(only: list[str]) -> None:
    from helpers.compiled_kernels import TABLE, all_cases, compiled, usage

    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for parameters in all_cases():
            op, case, dtype, target = parameters.values
            if only and op not in only:
                continue
            for name, _, built in compiled(op, case, dtype, target):
                found = usage(built, target, Path(folder))
                table[f"{case}/{name}/{dtype}/{target}"] = found
                print(case, name, dtype, target, found, flush=True)
    if only:
        return
    rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(table.items()))
    text = f'{{"triton": "{triton.__version__}", "kernels": {{\n{rows}\n}}}}'
    TABLE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
