#!/usr/bin/env bash
# Tests against PyTorch itself. They need a Python that imports torch, which the CPU set of libraries does not give:
# .venv of the CUDA set does, or PYTHON=PATH.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
tests=(common/*/tests/python/*.py)
if ! "$python" -c 'import torch' 2>/dev/null; then
    printf 'SKIPPED: %s (%s cannot import torch)\n' "$test" "$python"
    exit 0
fi
