#!/usr/bin/env bash
# A server on a pool of its own, and crowd.mjs against it. Wants node and npm. Ends with crowd.mjs's exit code.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
sharedrag=${SHAREDRAG:-sharedrag}
work=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo /tmp)" sharedrag-demo-js-XXXXXX)
trap 'kill "${server:-}" 2>/dev/null && wait "$server" || true; rm -rf "$work"' EXIT

command -v npm > /dev/null || { echo "This demo wants node and npm." >&2; exit 1; }
npm --prefix "$here" ci --no-audit --no-fund --silent

port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })')
export SHAREDRAG_URL="http://127.0.0.1:$port" SHAREDRAG_ADMIN_KEY="demo-$RANDOM$RANDOM$RANDOM$RANDOM"
"$sharedrag" serve --pool "$work/demo.pool" --capacity "64 MiB" --port "$port" --workers 1 > "$work/log" 2>&1 &
server=$!
for _ in $(seq 600); do
    curl -sf "$SHAREDRAG_URL/readyz" > /dev/null && break
    kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.2
done
node "$here/crowd.mjs" || { status=$?; tail -n 40 "$work/log" >&2; exit "$status"; }
