"""Environment variables by which `benchmarks.gpu.quick` tells its processes what to do."""

DRY_RUN = "FASTPROMPT_GPU_DRY_RUN"  # "1": on the CPU, see `dry_run`
NOTES = "FASTPROMPT_GPU_NOTES"  # file that results are appended to, see `notes`
TASK = "FASTPROMPT_GPU_TASK"  # name of the task that a process runs
