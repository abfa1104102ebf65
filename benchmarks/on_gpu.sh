#!/usr/bin/env bash
# Every figure that needs a GPU, from the source tree: bash benchmarks/on_gpu.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch shares the card
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
export JAX_COMPILATION_CACHE_DIR= # none: compile time is a figure
exec "${PYTHON:-python3}" -m benchmarks.on_gpu "$@"
