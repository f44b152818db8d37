#!/usr/bin/env bash
# `make bench`: measures every stage that computes, and PyTorch's training step where there is one, and puts them into one
# table. What they print is kept in $DATA/bench/$P, the table in docs/bench.
set -euo pipefail
: "${P:?}" "${CFG:?}" "${BIN:?}" "${DATA:?}" "${DEVICE:=auto}" "${GPUS:=1}" "${SET:=}" "${BENCH_SECONDS:=10}"
stages="train sample extract probe fid"
kept=$DATA/bench/$P
here=$(dirname "$0")
command="make bench P=$P DEVICE=$DEVICE"
[ "$GPUS" = 1 ] || command+=" GPUS=$GPUS"
[ -z "$SET" ] || command+=" SET=\"$SET\""
[ "$BENCH_SECONDS" = 10 ] || command+=" BENCH_SECONDS=$BENCH_SECONDS"

# The first Python that can import torch.
python=
for candidate in "${LCF_PYTHON:-}" .venv/bin/python3 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import torch' 2>/dev/null; then python=$candidate; break; fi
done
torch=
[ -z "$python" ] || torch=", then PyTorch's step (a few minutes more where it compiles)"
echo "bench: $P on device $DEVICE: six things, $BENCH_SECONDS s each and at most three times that, and the rates of the machine$torch" >&2

mkdir -p "$kept"
files=()
for stage in $stages; do
    more=()
    if [ "$stage" = train ] && [ "$GPUS" != 1 ]; then more=(--ranks "$GPUS"); fi
    for value in $SET; do more+=(--set "$value"); done
    echo "bench: $stage" >&2
    "$BIN/lcf-$stage" --bench --bench-seconds "$BENCH_SECONDS" --config "$CFG" --device "$DEVICE" --json "${more[@]}" \
        >"$kept/$stage.json"
    files+=("$kept/$stage.json")
done

more=()
if [ -z "$python" ]; then
    echo "PyTorch: skipped, ${LCF_PYTHON:-python3} cannot import torch" >&2
else
    echo "bench: PyTorch" >&2
    "$python" -B "$here/torch_step.py" --like "$kept/train.json" --seconds "$BENCH_SECONDS" >"$kept/torch.jsonl"
    more=(--torch "$kept/torch.jsonl")
fi
exec "$BIN/lcf-report" bench "${files[@]}" "${more[@]}" --command "$command" --out docs/bench
