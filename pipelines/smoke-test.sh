#!/usr/bin/env bash
# What must hold of the smoke run (DESIGN: tests), tried on a copy of it. `make test` calls this after `make smoke`.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${CARGO_TARGET_DIR:-target}/release
stages="prepare train extract probe sample fid"
data=${DATA:-data}
# Nothing of the make that called this.
unset MAKEFLAGS MAKELEVEL MFLAGS P SET SEEDS CFG DATA DEVICE SCALE RAW CIFAR10 TINY
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

[ -e "$data/runs/smoke/fid/manifest.json" ] || { echo "smoke-test: error: no smoke run in $data: run make smoke" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0
failed=0
ok() { passed=$((passed + 1)); echo "ok: $1"; }
bad() { failed=$((failed + 1)); echo "FAILED: $1"; [ -z "${2:-}" ] || tail -n 20 "$2" | sed 's/^/    /'; }
# check TEXT COMMAND...: whether the command succeeds.
check() { local text=$1; shift; if "$@" >"$tmp/log" 2>&1; then ok "$text"; else bad "$text" "$tmp/log"; fi; }

# run PLACE [MAKE ARGUMENT]...: the smoke run, kept in $tmp/PLACE, by the config there.
run() {
    local place=$tmp/$1; shift
    make --no-print-directory P=smoke SET= DEVICE=cpu DATA="$place" CFG="$place/smoke.json" "${@:-all}" >"$tmp/out" 2>&1
}
# The stages that the last run entered, and of each stage what its link leads to and when that was published.
entered() { sed -n 's/^.*lcf-\([a-z]*\) --config .*/\1/p' "$tmp/out" | sort | xargs; }
state() { for s in $stages; do echo "$s $(readlink -f "$1/runs/smoke/$s") $(stat -Lc %y "$1/runs/smoke/$s/manifest.json")"; done; }
# The stages whose lines differ between two states.
changed() { diff "$1" "$2" | sed -n 's/^> \([a-z]*\) .*/\1/p' | sort | xargs || true; }
digest() { sed -n 's/^  "digest": "\(.*\)",*$/\1/p' "$1/manifest.json" 2>/dev/null || echo none; }
digests() { for s in $stages; do echo "$s $(digest "$1/runs/smoke/$s")"; done; }
# place NAME: an empty store with the config in it.
place() { mkdir -p "$tmp/$1/artifacts" "$tmp/$1/runs/smoke"; cp pipelines/smoke.json "$tmp/$1/smoke.json"; }
# take NAME STAGE...: copies artifacts of the smoke run to a place, and their links.
take() {
    local to=$tmp/$1; shift
    for s in "$@"; do
        mkdir -p "$to/artifacts/$s"
        cp -a "$(readlink -f "$data/runs/smoke/$s")" "$to/artifacts/$s/"
        cp -a "$data/runs/smoke/$s" "$to/runs/smoke/$s"
    done
}
# flip FILE: one bit of its last byte.
flip() { python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(-1, 2); b = f.read(1)[0]; f.seek(-1, 2); f.write(bytes([b ^ 1]))' "$1"; }
# set_value FILE SECTION NAME VALUE
set_value() { python3 -c 'import json, sys; p, s, n, v = sys.argv[1:]; c = json.load(open(p)); c[s][n] = json.loads(v); json.dump(c, open(p, "w"))' "$@"; }

place copy
# shellcheck disable=SC2086
take copy $stages
# Whatever else these were made from, like reference statistics.
find "$data/artifacts" -mindepth 1 -maxdepth 1 -type d | while read -r dir; do
    case " $stages " in *" ${dir##*/} "*) ;; *) cp -a "$dir" "$tmp/copy/artifacts/" ;; esac
done
copy=$tmp/copy
# What make snapshots has left: links to other artifacts of the same stages.
cp -a "$data/runs/smoke/epoch-10" "$copy/runs/smoke/"
for link in "$copy"/runs/smoke/epoch-10/*; do
    [ ! -L "$link" ] || [ -e "$link" ] || cp -a "$(readlink -f "$data/runs/smoke/epoch-10/${link##*/}")" "$copy/artifacts/${link##*/}/"
done

# --- every manifest verifies
check "every file of the smoke run verifies" "$bin/lcf-artifact" verify "$copy/artifacts"
for s in $stages; do check "$s: its link leads to an artifact" test -s "$copy/runs/smoke/$s/manifest.json"; done
check "the run's table has a FID" sh -c "$bin/lcf-artifact show $copy/runs/smoke | grep -q '^FID [0-9]'"
check "and its probe curve starts at t=0" sh -c "$bin/lcf-artifact show $copy/runs/smoke | grep -q 'peak .* at t=0 '"

# --- a second run enters no stage; a config that is only newer rebuilds nothing
state "$copy" >"$tmp/before"
run copy && run copy
[ -z "$(entered)" ] && ok "a second run enters no stage" || bad "a second run entered: $(entered)" "$tmp/out"
run copy -n all
! grep -q -e cargo -e lcf- "$tmp/out" && ok "make -n then names no stage" || bad "make -n names stages" "$tmp/out"
touch "$copy/smoke.json"
run copy
state "$copy" >"$tmp/after"
[ "$(entered)" = "$(echo "$stages" | xargs -n1 | sort | xargs)" ] && ok "a newer config enters every stage" || bad "entered: $(entered)" "$tmp/out"
[ -z "$(changed "$tmp/before" "$tmp/after")" ] && ok "and rebuilds none" || bad "rebuilt: $(changed "$tmp/before" "$tmp/after")"

# --- an edited section rebuilds only its descendants; taking the edit back finds the old artifact
set_value "$copy/smoke.json" probe epochs 3
run copy
state "$copy" >"$tmp/after"
[ "$(changed "$tmp/before" "$tmp/after")" = probe ] && ok "editing probe rebuilds probe alone" || bad "rebuilt: $(changed "$tmp/before" "$tmp/after")" "$tmp/out"
set_value "$copy/smoke.json" sample num 8
set_value "$copy/smoke.json" fid reference 16
run copy
state "$copy" >"$tmp/later"
[ "$(changed "$tmp/after" "$tmp/later")" = "fid sample" ] && ok "editing sample rebuilds sample and fid" || bad "rebuilt: $(changed "$tmp/after" "$tmp/later")" "$tmp/out"
cp pipelines/smoke.json "$copy/smoke.json"
run copy
state "$copy" >"$tmp/after"
cmp -s "$tmp/before" "$tmp/after" && ok "taking the edits back finds the old artifacts" || bad "rebuilt: $(changed "$tmp/before" "$tmp/after")" "$tmp/out"
run copy all SET=probe.epochs=3
state "$copy" >"$tmp/after"
[ "$(changed "$tmp/before" "$tmp/after")" = probe ] && ok "SET is an edit too" || bad "rebuilt: $(changed "$tmp/before" "$tmp/after")" "$tmp/out"
run copy

# --- more seeds to sample with, and back
state "$copy" >"$tmp/before"
run copy all SEEDS=1
[ "$(entered)" = "fid sample" ] && ok "another seed enters sample and fid" || bad "entered: $(entered)" "$tmp/out"
check "fid knows two seeds" sh -c "$bin/lcf-artifact show $copy/runs/smoke | grep -q '^over 2 seeds: FID [0-9]'"
run copy
state "$copy" >"$tmp/after"
cmp -s "$tmp/before" "$tmp/after" && ok "without it there is one again" || bad "rebuilt: $(changed "$tmp/before" "$tmp/after")" "$tmp/out"

# --- a deleted artifact is rebuilt, the same
digests "$copy" >"$tmp/digests"
rm -r "$(readlink -f "$copy/runs/smoke/probe")"
run copy
[ "$(entered)" = probe ] && ok "a deleted artifact is rebuilt" || bad "entered: $(entered)" "$tmp/out"
digests "$copy" | cmp -s - "$tmp/digests" && ok "and has the same content" || bad "its content differs"

# --- wrong input: exit 1, naming the file
# wrong STAGE COMMAND...: flips a byte of the largest file of the stage's artifact, then the command must fail.
wrong() {
    local dir file
    dir=$(readlink -f "$copy/runs/smoke/$1"); shift
    file=$(find "$dir" -type f ! -name manifest.json -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
    wrong_file "$file" "$@"
}
# wrong_file FILE COMMAND...
wrong_file() {
    local file=$1 status=0; shift
    cp "$file" "$tmp/good"
    flip "$file"
    "$@" >"$tmp/log" 2>&1 || status=$?
    [ $status = 1 ] && grep -q "${file##*/}" "$tmp/log" &&
        ok "a flipped byte in ${file##*/}: $(basename "$1") exits 1 and names it" ||
        bad "a flipped byte in ${file##*/}: $(basename "$1") exits $status" "$tmp/log"
    cp "$tmp/good" "$file"
}
by_hand() { echo "$bin/lcf-$1" --config "$copy/smoke.json" --store "$copy/artifacts"; }
of() { echo "$copy/runs/smoke/$1"; }
# shellcheck disable=SC2046
{
    wrong prepare $(by_hand train) --data "$(of prepare)" --device cpu
    wrong train $(by_hand sample) --model "$(of train)" --device cpu
    wrong extract $(by_hand probe) --features "$(of extract)" --device cpu
    wrong sample $(by_hand fid) --samples "$(of sample)" --data "$(of prepare)" --device cpu
    wrong sample "$bin/lcf-artifact" verify "$copy/artifacts"
}
check "mended, every file verifies again" "$bin/lcf-artifact" verify "$copy/artifacts"

# --- the report: what make smoke has left, what it says, and what it does without
report() { "$bin/lcf-report" --store "$copy/artifacts" --link "$copy/runs/smoke/report" "$copy/runs/smoke" >"$tmp/report" 2>"$tmp/log"; }
check "make smoke has left a report" test -s "$data/runs/smoke/report/index.html"
# It looks at the files that it reads and no others.
wrong_file "$(readlink -f "$copy/runs/smoke/sample")/images.npy" "$bin/lcf-report" --store "$copy/artifacts" "$copy/runs/smoke"
if report && ! grep -q '^missing: ' "$tmp/report"; then ok "the report misses nothing"; else bad "the report" "$tmp/report"; fi
page=$copy/runs/smoke/report/index.html
fid=$(sed -n 's/^  "fid": \([0-9]*\.[0-9]\).*/\1/p' "$copy/runs/smoke/fid/fid.json")
check "its page has the FID" grep -q "<td>$fid" "$page"
check "and the digest of the weights" grep -q "$(digest "$copy/runs/smoke/train")" "$page"
! grep -q -e 'src="http' -e 'href="http' -e '<script' -e '<link' "$page" && ok "and loads nothing from elsewhere" || bad "it loads something"
for figure in probe-raw probe-std fid-epochs loss-end loss-smoke probe-epochs-smoke-raw samples pull push; do
    check "figure $figure" test -s "${page%/*}/figures/$figure.svg" -a -s "${page%/*}/figures/$figure.png"
done
report && grep -q 'up to date' "$tmp/report" && ok "a second report is up to date" || bad "a second report" "$tmp/report"
mv "$copy/runs/smoke/probe" "$tmp/probe-link"
report && grep -q '^missing: smoke: no probe (make probe P=smoke)' "$tmp/report" && grep -q 'smoke: no probe' "$page" &&
    ok "a missing probe is named" || bad "a missing probe" "$tmp/report"
mv "$tmp/probe-link" "$copy/runs/smoke/probe"

# --- a misspelt value: exit 2, naming it
status=0
# shellcheck disable=SC2046
$(by_hand probe) --features "$(of extract)" --set probe.epochz=3 >"$tmp/log" 2>&1 || status=$?
[ $status = 2 ] && grep -q epochz "$tmp/log" && ok "a misspelt value exits 2 and is named" || bad "exit $status" "$tmp/log"

# --- gc
run copy all SET=probe.epochs=3 && run copy
kept=$(find "$copy/artifacts/probe" -mindepth 1 -maxdepth 1 -name '[0-9a-f]*' | wc -l)
check "gc" "$bin/lcf-artifact" gc --store "$copy/artifacts" --runs "$copy/runs"
left=$(find "$copy/artifacts/probe" -mindepth 1 -maxdepth 1 | wc -l)
[ "$kept" -gt 2 ] && [ "$left" = 2 ] && ok "gc leaves two of $kept probes, that of the run and that of its snapshot" || bad "gc left $left of $kept probes"
run copy -n all
! grep -q lcf- "$tmp/out" && ok "and all that the run needs" || bad "gc removed something the run needs" "$tmp/out"

# --- interrupted training: a checkpoint is left, nothing is published, and going on gives the same weights
# interrupt SIGNAL AWAITED [FLAG]...: trains in a place of its own, with these flags, and sends the signal when the file
# AWAITED is in the work directory.
interrupt() {
    local signal=$1 awaited=$2; shift 2
    place "$signal"
    take "$signal" prepare
    local at=$tmp/$signal status=0
    local train=("$bin/lcf-train" --config "$at/smoke.json" --store "$at/artifacts" --link "$at/runs/smoke/train"
        --data "$at/runs/smoke/prepare" --device cpu)
    "${train[@]}" "$@" >"$tmp/log" 2>&1 &
    local pid=$!
    while kill -0 $pid 2>/dev/null && ! in_work "$at" "$awaited"; do sleep 0.05; done
    kill -"$signal" $pid 2>/dev/null || true
    { wait $pid || status=$?; } 2>/dev/null
    [ $status != 0 ] && ok "SIG$signal in training: exit $status" || bad "SIG$signal in training: it had ended" "$tmp/log"
    [ -z "$(find "$at/artifacts" -path '*/train/*/manifest.json')" ] &&
        ok "SIG$signal: nothing is published" || bad "SIG$signal: published"
    in_work "$at" .checkpoint.json && ok "SIG$signal: a checkpoint is left" || bad "SIG$signal: no checkpoint" "$tmp/log"
    "${train[@]}" >"$tmp/log" 2>&1 && grep -q 'resuming at step [1-9]' "$tmp/log" &&
        ok "SIG$signal: training goes on at $(sed -n 's/.*resuming at \(step [0-9]* of [0-9]*\).*/\1/p' "$tmp/log")" ||
        bad "SIG$signal: training does not go on" "$tmp/log"
    [ "$(digest "$at/runs/smoke/train")" = "$(digest "$data/runs/smoke/train")" ] &&
        ok "SIG$signal: the weights are those of an undisturbed training" || bad "SIG$signal: the weights differ" "$tmp/log"
}
# Whether there is a file of that name in the work directory of the training under way.
in_work() { [ -n "$(find "$1/artifacts" -path "*/train/.work-*/$2" 2>/dev/null)" ]; }
interrupt KILL .checkpoint.json --checkpoint-steps 150
# Rows of metrics.csv say that it is under way; the only checkpoint by then is the one that the signal makes.
interrupt TERM metrics.csv

# --- SIGTERM to make and all that it started at once, as timeout or a batch system sends it; make sends it on
place group
take group prepare
group=$tmp/group
setsid make --no-print-directory train P=smoke SET= DEVICE=cpu DATA="$group" CFG="$group/smoke.json" >"$tmp/log" 2>&1 &
pid=$!
while kill -0 $pid 2>/dev/null && ! in_work "$group" metrics.csv; do sleep 0.05; done
kill -TERM -- -$pid 2>/dev/null || true
status=0
{ wait $pid || status=$?; } 2>/dev/null
[ $status != 0 ] && grep -q 'stopped by a signal' "$tmp/log" && in_work "$group" .checkpoint.json &&
    ok "SIGTERM to a process group leaves a checkpoint" || bad "SIGTERM to a process group: exit $status" "$tmp/log"
run group train && grep -q 'resuming at step [1-9]' "$tmp/out" &&
    [ "$(digest "$group/runs/smoke/train")" = "$(digest "$data/runs/smoke/train")" ] &&
    ok "and make goes on to the same weights" || bad "make does not go on to the same weights" "$tmp/out"

# --- where raw images come from: another path enters prepare, which looks at it; the quotes are those of the shell
raw="$tmp/it's not there"
place raw
take raw prepare
run raw prepare
for _ in 1 2; do
    ! run raw prepare "RAW=$raw" && grep -q "^prepare: error: --data $raw: " "$tmp/out" &&
        ok "RAW with a space and a quote reaches prepare" || bad "RAW with a space and a quote" "$tmp/out"
    run raw prepare && [ -z "$(entered)" ] && ok "without it what is prepared is good" || bad "entered: $(entered)" "$tmp/out"
done

# --- two jobs at once
place two
if run two -j2 all; then ok "make -j2 runs"; else bad "make -j2 fails" "$tmp/out"; fi
digests "$tmp/two" >"$tmp/two-digests" 2>/dev/null || true
digests "$data" | cmp -s - "$tmp/two-digests" && ok "make -j2 gives the same content" ||
    bad "make -j2 gives other content: $(digests "$data" | diff - "$tmp/two-digests" | grep '^>' | cut -d' ' -f2 | xargs)"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
