#!/usr/bin/env bash
# Renew requirements/: the newest versions that pyproject.toml admits, with the hashes of their files.
#
# Usage: tools/lock.sh VENV, a virtual environment that has uv: `make lock`.
# The lists hold for Linux on x86-64 and aarch64 and every Python that pyproject.toml admits; so the
# condition that says the former is left out of their lines.
set -euo pipefail

cd "$(dirname "$0")/.."
venv=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What a line says of a package that is needed wherever the lists hold.
linux="sys_platform == 'linux'"
everywhere="python_full_version < '3.14' and ((platform_machine == 'aarch64' and $linux) or \
(platform_machine == 'x86_64' and $linux))"

# Write requirements/$1.txt for the requirements that the other arguments name.
lock() {
    echo "requirements/$1.txt"
    "$venv/bin/uv" pip compile --quiet --universal --python-version 3.12 --generate-hashes \
        --no-annotate --no-header "${@:2}" --output-file "$work/$1.txt"
    {
        echo "# Written by \`make lock\`."
        sed "s/ ; $everywhere//" "$work/$1.txt"
    } >"$work/$1.lock"
}

printf '%s\n' uv >"$work/uv.in"
# What builds this project, and the few packages that come as sources only.
printf '%s\n' hatchling packaging pathspec setuptools wheel >"$work/build.in"
lock uv "$work/uv.in"
lock build "$work/build.in"
# `run` is what training, conversion and evaluation need; `test` has the same versions, and more.
lock test --extra dev --extra eval --extra deepspeed pyproject.toml
lock run --extra eval --constraints "$work/test.txt" pyproject.toml
mkdir -p requirements
for name in uv build run test; do
    mv "$work/$name.lock" "requirements/$name.txt"
done
