#!/usr/bin/env bash
# Installs libtorch (the torch wheel's) into .venv and links .venv/libtorch to it. What is there already stays.
# pipelines/deps.sh 0   the CPU: what libtorch-cpu.txt lists
# pipelines/deps.sh 1   CUDA: what libtorch-cuda.txt lists, nvcc included
set -euo pipefail
VERSION=2.11.0
RUST=1.89

die() { echo "deps: error: $1" >&2; [ -z "${2:-}" ] || echo "hint: $2" >&2; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 not found" "$2"; }
# Whether version $1 is at least $2.
at_least() { printf '%s\n%s\n' "$2" "$1" | sort -CV; }

need cargo "install Rust $RUST or newer with rustup: https://rustup.rs"
rust=$(cargo --version | cut -d' ' -f2)
at_least "$rust" "$RUST" || die "found Rust $rust, expected $RUST or newer" "rustup update stable"
need gcc "sudo apt install gcc"
need g++ "sudo apt install g++"
need curl "sudo apt install curl"

if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH: no lib/libtorch_cpu.so there" \
        "name the directory that holds lib and include, or unset LIBTORCH"
    exit 0
fi

mkdir -p .venv
installed() { grep -qs "^__version__ = '$VERSION" .venv/libtorch/version.py; }
done=.venv/cuda-$VERSION
if [ "$1" = 0 ]; then installed && exit 0; else installed && [ -e "$done" ] && exit 0; fi

# Two makes at once would install over each other.
exec 9>.venv/lock
flock 9
if [ "$1" = 0 ]; then installed && exit 0; else installed && [ -e "$done" ] && exit 0; fi

need python3 "sudo apt install python3 python3-venv"
python3 -c 'import ensurepip, venv' 2>/dev/null || die "Python's venv module is missing" "sudo apt install python3-venv"
python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' ||
    die "found $(python3 --version), expected Python 3.10 to 3.14 for torch $VERSION" "or export LIBTORCH=DIR"
free=$(df -Pk .venv | awk 'NR == 2 { print int($4 / 1048576) }')
if [ "$1" = 0 ]; then
    size=2; what="the CPU (0.55 GB to download, 1.2 GB on disk)"; packages=pipelines/libtorch-cpu.txt
else
    size=9; what="CUDA (3 GB to download, 4.9 GB on disk)"; packages=pipelines/libtorch-cuda.txt
fi
[ "$free" -ge "$size" ] || die ".venv: found $free GB of free disk space, expected $size" "free some, or export LIBTORCH=DIR"

echo "deps: installing libtorch $VERSION for $what into .venv" >&2
[ -x .venv/bin/pip ] || python3 -m venv .venv
# No file is taken whose hash is not in the list, and none is run to be installed.
.venv/bin/pip install --disable-pip-version-check --no-compile --require-hashes --only-binary=:all: --no-deps -r "$packages" \
    >&2 || die "pip could not install what $packages lists" "run make deps again, or export LIBTORCH=DIR"
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
ln -sfn "$(realpath --relative-to=.venv "$site/torch")" .venv/libtorch
# Build scripts look again whether there is an nvcc.
touch .venv/libtorch/lib/libtorch_cpu.so
installed || die ".venv/libtorch/version.py does not say $VERSION" "rm -r .venv and run make deps again"
[ "$1" = 0 ] || touch "$done"
