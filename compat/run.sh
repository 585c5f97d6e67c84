#!/usr/bin/env bash
# Drives the built server with the official SDKs: Python under pytest, TypeScript's under node's own test runner.
#
#   PALISADE_BIN   the binary to test (default: the release build)
#   COMPAT_ONLY    python | typescript: run one suite only
#
# Ends with the line "N passed, N failed" and a non-zero exit code when anything failed or could not run.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname -- "$here")
target="$root/target/compat"
only=${COMPAT_ONLY:-}

fail() {
  printf 'compat: %s\n' "$*" >&2
  exit 1
}

PALISADE_BIN=${PALISADE_BIN:-$root/target/x86_64-unknown-linux-gnu/release/palisade}
case $PALISADE_BIN in /*) ;; *) PALISADE_BIN=$PWD/$PALISADE_BIN ;; esac
[ -x "$PALISADE_BIN" ] || fail "there is no binary at $PALISADE_BIN; run 'cargo build --release' or set PALISADE_BIN"
export PALISADE_BIN

case $only in '' | python | typescript) ;; *) fail "COMPAT_ONLY must be python or typescript, not '$only'" ;; esac

missing=()
if [ "$only" != typescript ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || missing+=("python3 (3.10 or later)")
fi
if [ "$only" != python ]; then
  node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null || missing+=("node (20 or later)")
  command -v npm >/dev/null || missing+=("npm")
fi
if [ ${#missing[@]} -gt 0 ]; then
  fail "missing on this machine: $(printf '%s; ' "${missing[@]}")the official SDKs need them"
fi

mkdir -p "$target"
work=$(mktemp -d "${TMPDIR:-/tmp}/palisade-compat.XXXXXX")
trap 'rm -rf -- "$work" || true' EXIT

# Whatever the caller's shell holds must not reach the programs: a real key, another base URL, a proxy before loopback.
for name in $(compgen -e | grep -E '^ANTHROPIC_' || true); do unset "$name"; done
export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}" no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"

# Gives the network three chances.
thrice() {
  local n
  for n in 1 2 3; do
    "$@" && return
    [ "$n" -eq 3 ] || sleep $((n * 5))
  done
  return 1
}

# Installs the pinned requirements into a virtual environment under target/, once per version of the list.
prepare_python() {
  local venv=$target/venv stamp=$target/venv/.requirements list=$here/python/requirements.txt
  if [ -x "$venv/bin/python" ] && cmp -s "$list" "$stamp"; then return; fi
  rm -rf -- "$venv"
  if ! python3 -m venv "$venv" >"$work/venv.log" 2>&1; then
    cat "$work/venv.log" >&2
    fail "python3 cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv)"
  fi
  if ! thrice "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list" >"$work/pip.log" 2>&1; then
    cat "$work/pip.log" >&2
    fail "pip could not install compat/python/requirements.txt; a Python package index must be reachable"
  fi
  cp -- "$list" "$stamp"
}

# Installs the locked packages next to package.json, once per version of the lock file.
prepare_typescript() {
  local at=$here/typescript stamp=$here/typescript/node_modules/.package-lock.stamp
  if cmp -s "$at/package-lock.json" "$stamp"; then return; fi
  if ! (cd "$at" && thrice npm ci --no-audit --no-fund --loglevel=error) >"$work/npm.log" 2>&1; then
    cat "$work/npm.log" >&2
    fail "npm could not install compat/typescript/package-lock.json; a Node package registry must be reachable"
  fi
  cp -- "$at/package-lock.json" "$stamp"
}

passed=0 failed=0
# Adds a runner's own counts; a runner that died before it counted anything is one failure.
count() {
  local name=$1 status=$2 good=$3 bad=$4
  passed=$((passed + ${good:-0}))
  failed=$((failed + ${bad:-0}))
  if [ "$status" -ne 0 ] && [ "${bad:-0}" -eq 0 ]; then
    printf 'compat: the %s suite ended with status %s without naming a failed test\n' "$name" "$status" >&2
    failed=$((failed + 1))
  fi
  if [ "$status" -eq 0 ] && [ "${good:-0}" -eq 0 ]; then
    printf 'compat: the %s suite ran no test\n' "$name" >&2
    failed=$((failed + 1))
  fi
}

if [ "$only" != typescript ]; then
  prepare_python
  echo "== Python: anthropic $(sed -n 's/^anthropic==//p' "$here/python/requirements.txt")"
  status=0
  (cd "$here/python" && PYTHONDONTWRITEBYTECODE=1 "$target/venv/bin/python" -m pytest --basetemp="$work/pytest" --junitxml="$work/python.xml") || status=$?
  read -r good bad < <("$target/venv/bin/python" - "$work/python.xml" <<'PY' || echo "0 0"
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot().find("testsuite")
total, skipped = int(suite.get("tests")), int(suite.get("skipped"))
bad = int(suite.get("failures")) + int(suite.get("errors"))
# A skipped test showed nothing, so it does not count as a pass.
print(total - bad - skipped, bad + skipped)
PY
  )
  count Python "$status" "$good" "$bad"
fi

if [ "$only" != python ]; then
  prepare_typescript
  echo "== TypeScript: @anthropic-ai/sdk $(sed -n 's/.*"@anthropic-ai\/sdk": "\([0-9.]*\)".*/\1/p' "$here/typescript/package.json" | head -1)"
  status=0
  (cd "$here/typescript" && node --test --test-timeout=150000 --test-reporter=spec --test-reporter-destination=stdout \
    --test-reporter=tap --test-reporter-destination="$work/typescript.tap" tests/*.test.mjs) || status=$?
  good=$(sed -n 's/^# pass \([0-9]*\)$/\1/p' "$work/typescript.tap" 2>/dev/null || true)
  bad=$(awk '/^# (fail|cancelled|skipped|todo) [0-9]+$/ { n += $3 } END { print n + 0 }' "$work/typescript.tap" 2>/dev/null || true)
  count TypeScript "$status" "$good" "$bad"
fi

printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
