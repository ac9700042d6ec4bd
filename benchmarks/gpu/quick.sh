#!/usr/bin/env bash
# The most valuable measurements in a short time on an H100 or H200: see benchmarks/README.md.
#   benchmarks/gpu/quick.sh --out FOLDER                 the first call, 540 s
#   benchmarks/gpu/quick.sh --out FOLDER --second 250    a second one, with 250 s of the time left
#   benchmarks/gpu/quick.sh --dry-run                    the same on a CPU, on a model of two layers
set -euo pipefail
export FASTPROMPT_GPU_BEGAN=$(date +%s) PYTHONUNBUFFERED=1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
cache=${TMPDIR:-/tmp}/fastprompt-gpu
export FASTPROMPT_GPU_CACHE=$cache TRITON_CACHE_DIR=$cache/triton
export TORCHINDUCTOR_CACHE_DIR=$cache/inductor TORCHINDUCTOR_FX_GRAPH_CACHE=1
exec "${PYTHON:-python3}" -m benchmarks.gpu.quick "$@"
