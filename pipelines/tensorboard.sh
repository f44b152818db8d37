#!/usr/bin/env bash
# TensorBoard into .venv/tensorboard (150 MB), for the test that reads event files with it, unless $LCF_PYTHON names a Python.
set -euo pipefail
VERSION=2.21.0

dir=.venv/tensorboard
[ -z "${LCF_PYTHON:-}" ] && [ ! -e "$dir/done" ] || exit 0
echo "tensorboard: installing TensorBoard $VERSION into $dir for a test" >&2
python3 -m venv "$dir"
if "$dir/bin/pip" install -q --disable-pip-version-check --no-compile "tensorboard==$VERSION" >&2; then
    touch "$dir/done"
else
    echo "tensorboard: pip could not install it; its test is skipped" >&2
fi
