#!/usr/bin/env bash
# Run the tests of what touches other packages at one end of the ranges of pyproject.toml.
#
# Usage: tools/test_versions.sh VENV highest|lowest-direct [pytest arguments]
# VENV has uv. The packages go into a virtual environment that is removed at the end; their versions
# are printed. Not part of `make test`: the newest versions change from day to day.
set -euo pipefail

cd "$(dirname "$0")/.."
uv=$PWD/$1/bin/uv
base=$PWD/$1/bin/python
resolution=$2
shift 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$work/venv/bin/python
"$uv" venv --quiet --python "$base" "$work/venv"
"$uv" pip install --quiet --python "$python" --resolution "$resolution" \
    --build-constraints requirements/build.txt --editable '.[dev,eval,deepspeed]'

echo "The versions of what pyproject.toml names:"
"$python" - <<'PYTHON'
from importlib import metadata

from packaging.requirements import Requirement

for requirement in map(Requirement, metadata.requires("helm-megatron")):
    extras = ("", "eval", "deepspeed")
    if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras):
        print(f"    {requirement.name} {metadata.version(requirement.name)}")
PYTHON

OMP_NUM_THREADS=1 "$python" -m pytest -n "${WORKERS:-2}" --dist loadgroup --no-loadscope-reorder -m "not slow" "$@" \
    tests/hf tests/conversion tests/evaluation tests/data tests/megatron_patches tests/optim tests/pretrain/test_training.py
