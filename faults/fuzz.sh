#!/usr/bin/env bash
# Feeds the targets of faults/targets from libFuzzer and counts: faults/fuzz.sh [-runs=N | -max_total_time=SECONDS] [TARGET]...
# Each target starts from its seeds and what earlier runs have found in target/fuzz/TARGET. An input that breaks one is
# kept in faults/targets/seeds/TARGET, where `cargo test` runs it from then on. Ends with 1 where there was one.
set -euo pipefail
cd "$(dirname "$0")"

limit=()
while [[ ${1:-} == -* ]]; do limit+=("$1"); shift; done
targets=("$@")
[[ ${#limit[@]} -gt 0 ]] || limit=(-runs=10000000 -max_total_time=1800)
[[ ${#targets[@]} -gt 0 ]] || mapfile -t targets < <(ls targets/seeds)

if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "fuzz: error: cargo-fuzz is not installed" >&2
  echo "hint: cargo install cargo-fuzz --locked" >&2
  exit 1
fi
for target in "${targets[@]}"; do
  if [[ ! -d targets/seeds/$target ]]; then
    echo "fuzz: error: no target $target; there are: $(ls targets/seeds | tr '\n' ' ')" >&2
    exit 2
  fi
done

# libFuzzer's instrumentation is a flag of nightly compilers, which this lets the stable one take.
export RUSTC_BOOTSTRAP=1
export LIBTORCH=${LIBTORCH:-$PWD/../.venv/libtorch}
export LD_LIBRARY_PATH=$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cargo fuzz build --fuzz-dir fuzz -s none any
program=$(find fuzz/target -path '*/release/any' -type f -perm -u+x | head -n 1)

failed=0
for target in "${targets[@]}"; do
  corpus=$PWD/../target/fuzz/$target
  log=$corpus.log
  mkdir -p "$corpus"
  # A seed that is longer is cut; what is longer than it has to be is slow.
  case $target in
    checkpoint) length=70000 ;;
    npz) length=4096 ;;
    *) length=16384 ;;
  esac
  start=$SECONDS
  code=0
  LCF_FUZZ=$target "$program" "${limit[@]}" -max_len=$length -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 \
    -artifact_prefix="$PWD/targets/seeds/$target/" "$corpus" "targets/seeds/$target" >"$log" 2>&1 || code=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  if [[ $code == 0 ]]; then
    echo "$target: ${runs:-0} executions in $((SECONDS - start)) s, none broke it"
  else
    echo "$target: broken after ${runs:-?} executions: $(sed -n 's/^artifact_prefix.*Test unit written to //p' "$log"); see $log" >&2
    failed=1
  fi
done
exit $failed
