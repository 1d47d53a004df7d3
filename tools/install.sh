#!/usr/bin/env bash
# Install the exact versions of requirements/$2.txt, and this checkout, into the virtual environment $1.
#
# Usage: tools/install.sh VENV run|test|uv
# The environment is made with some Python >= 3.12 where there is none; a working one is kept.
# Every download is checked against the hashes of requirements/. `uv` stops after uv itself.
set -euo pipefail

cd "$(dirname "$0")/.."
venv=$1 packages=$2

make_venv() {
    local python
    for python in python3.12 python3.13 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            echo "Making $venv with $("$python" --version)"
            "$python" -m venv "$venv"
            return
        fi
    done
    echo "error: no Python 3.12 or newer found; install one (for example python3.12 and" \
        "python3.12-venv) so that it is on PATH, then run make again" >&2
    exit 1
}

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
"$venv/bin/python" -m pip install --quiet --require-hashes --requirement requirements/uv.txt
[[ $packages != uv ]] || exit 0

uv_install() {
    "$venv/bin/uv" pip install --python "$venv/bin/python" \
        --build-constraints requirements/build.txt "$@"
}

echo "Installing requirements/$packages.txt into $venv"
uv_install --require-hashes --requirement "requirements/$packages.txt"
uv_install --quiet --no-deps --editable .
# Apart: where it can be imported by everyone, Megatron would take it for what a GPU has.
[[ $packages != test ]] || uv_install --quiet --no-deps --require-hashes \
    --target "$venv/te-stand-in" --requirement requirements/te.txt
