"""A run of the ladder as pytest-benchmark writes it, small and made up: for tables and guard."""

import copy
import json
import statistics

from benchmarks.ladder import result_file

MACHINE = {
    "processor": "A processor",
    "cores": 2,
    "threads": 2,
    "torch": "2.15.0",
    "dtype": "float32",
    "freed_memory_kept": True,
}
STEP, TEXT, MANY = "step/nap/c100", "towers/text/c200", "towers/text/c21000"
PEER, OP, BOX = "peers/pgd/b64", "kernels/mixture_logits/b128", "kernels/pgd_step/b8"
SECONDS = {
    "step/nap/c10": {"eager": [4.0, 4.4, 4.2], "fastprompt": [1.0, 1.1, 0.9]},
    STEP: {
        "eager": [50.0, 40.0, 45.0],
        "eager-hoisted": [15.0, 15.5, 14.5],
        "eager-careful": [9.0, 9.1, 8.9],
        "fastprompt": [5.0, 4.0, 6.0],
    },
    TEXT: {"eager": [12.8, 12.9, 12.7], "fastprompt": [0.8, 0.81, 0.79]},
    MANY: {"eager-hoisted": [300.0], "fastprompt": [150.0]},
    PEER: {"torchattacks": [1.5, 1.4, 1.6], "fastprompt": [0.5, 0.51, 0.49]},
    OP: {"eager": [0.3], "fastprompt": [0.05]},
    BOX: {"eager": [3e-5], "fastprompt": [3e-5]},
}


def entry(group, rung, seconds, **changed):
    """One of pytest-benchmark's, as the ladder fills it."""
    baseline = next(iter(seconds))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = [a / b for a, b in zip(seconds[baseline], seconds[rung], strict=True)]
    extra = {
        **MACHINE,
        "rung": rung,
        "baseline": baseline,
        f"ratio_to_{baseline}": medians[baseline] / medians[rung],
        "ratio_range": [min(pairs), max(pairs)],
        "ceiling": 9.6 if rung == "fastprompt" else 1.0,
        "flops": 7_000_000,
        "limit": "matmul",
        "share_of_limit": 0.781,
        "largest_error": 3.2e-6,
        "classes": 100,
        "shape": [8, 100],
    }
    stats = {"data": seconds[rung], "median": medians[rung]}
    return {"group": group, "name": f"{group}-{rung}", "stats": stats, "extra_info": extra} | {
        "extra_info": extra | changed
    }


def entries(seconds=SECONDS, **changed):
    found = [entry(g, r, rungs, **changed) for g, rungs in seconds.items() for r in rungs]
    other = {"group": "fold", "stats": {"data": [1.0]}, "extra_info": {"rung": "folded"}}
    return [*found, other]


def slower(group, rung, share):
    """The same run, but that a rung lost ``share`` of its ratio."""
    seconds = copy.deepcopy(SECONDS)
    seconds[group][rung] = [s / (1 - share) for s in seconds[group][rung]]
    return seconds


def rows(seconds=SECONDS, **changed):
    return result_file.rows_of(entries(seconds, **changed))


def save(results, found, machine="cpu-2-cores", name=result_file.FILE):
    path = results / machine / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return path
