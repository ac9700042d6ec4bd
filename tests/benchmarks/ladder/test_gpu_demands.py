"""What is demanded of a GPU, with what was measured on one, or without."""

from helpers.ladder_files import save

from benchmarks.ladder import gpu_demands


def test_without_a_gpu_nothing_is_claimed(tmp_path):
    lines = gpu_demands.gpu_table(tmp_path).splitlines()
    demands = [line for line in lines[2:] if line.startswith("|")]
    assert len(demands) == 5
    assert all(line.endswith("| not yet measured |") for line in demands)
    assert lines[-1].endswith("5.86 s a step, on an A100.")


def test_gpu_results_are_read(tmp_path):
    step = {
        "classes": 1000,
        "eager": {"median": 12.0},
        "fastprompt": {"median": 2.5},
        "fastprompt, bf16": {"median": 0.5},
        "fastprompt, bf16, compiled": {"median": 0.3},
        "eager-careful": {"median": 0.6},
    }
    attack = {
        "batch": 256,
        "compile=True, graph=False": {"matmul_share": 0.41},
        "compile=True, graph=True": {"matmul_share": 0.52},
    }
    save(tmp_path, {"card": "A card", "result": step}, "a-card", "gpu-step.json")
    save(tmp_path, {"card": "A card", "result": attack}, "a-card", "gpu-attack.json")
    save(tmp_path, {"card": "Broken", "error": "out of memory"}, "b-card", "gpu-step.json")
    lines = gpu_demands.gpu_table(tmp_path).splitlines()[2:7]
    assert [line.split(" | ")[-1].removesuffix(" |") for line in lines] == [
        "4.8x, 2500 ms a step (A card)",
        "40.0x, 300 ms a step (A card)",
        "not yet measured",  # with TF32
        "2.0x, 300 ms a step (A card)",
        "52 % (A card)",
    ]
