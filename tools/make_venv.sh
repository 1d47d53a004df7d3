#!/usr/bin/env bash
# Make the virtual environment $1 with some Python >= 3.12; an existing working one is kept.
set -euo pipefail

venv=$1
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
for python in python3.12 python3.13 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
        echo "Making $venv with $("$python" --version)"
        exec "$python" -m venv "$venv"
    fi
done
echo "error: no Python 3.12 or newer found; install one (for example python3.12 and" \
    "python3.12-venv) so that it is on PATH, then run make again" >&2
exit 1
