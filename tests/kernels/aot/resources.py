"""Registers, spills and shared memory of every kernel, for every target.

python tests/kernels/aot/resources.py            # measure all with the installed Triton
python tests/kernels/aot/resources.py pgd_step  # one op

`resources.json` has one table per Triton version. This replaces the measured rows of the installed
version's, and leaves the other versions' as they are.
"""

import json
import sys
import tempfile
from pathlib import Path

import triton

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def main(only: list[str]) -> None:
    from helpers.compiled_kernels import all_cases, compiled, usage

    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for op, case, dtype, target in all_cases():
            if only and op not in only:
                continue
            for name, _, built in compiled(op, case, dtype, target):
                found = usage(built, target, Path(folder))
                table[f"{case}/{name}/{dtype}/{target}"] = found
                print(case, name, dtype, target, found, flush=True)
    write(table, complete=not only)


def write(found: dict[str, dict[str, int]], complete: bool) -> None:
    """Put rows of the installed Triton into the table; all of its rows, if complete."""
    from helpers.compiled_kernels import TABLE

    tables = json.loads(TABLE.read_text(encoding="utf-8"))
    before = {} if complete else tables.get(triton.__version__, {})
    tables[triton.__version__] = before | found
    parts = []
    for version, table in sorted(tables.items()):
        rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(table.items()))
        parts.append(f"{json.dumps(version)}: {{\n{rows}\n}}")
    TABLE.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
