#!/usr/bin/env bash
# The tables of docs/performance.md that a CPU can give: with two threads about twelve minutes.
# Markdown on standard output, JSON in $OUTPUT (default: runs/benchmarks).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} OUTPUT=${OUTPUT:-runs/benchmarks/cpu} THREADS=${THREADS:-2}
export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=$THREADS

bench() {
    local name=$1 script=$2
    shift 2
    printf '\n### %s\n\n' "$name"
    "$PYTHON" "benchmarks/$script" "$@" --output "$OUTPUT/$name.json"
}

step=(--dtype fp32 --seq-length 1024 --micro-batch-size 1 --threads "$THREADS")
bench step-helm-d train_step.py --shape helm-d-6x384 "${step[@]}" --steps 7
bench step-helm-d-small-vocabulary train_step.py --shape helm-d-6x384 "${step[@]}" \
    --vocab-size 8192 --steps 15
bench step-mice train_step.py --shape mice-120m "${step[@]}" --steps 7
bench step-mice-small-vocabulary train_step.py --shape mice-120m "${step[@]}" \
    --vocab-size 8192 --steps 15
bench step-chunked-logits train_step.py --shape helm-d-6x384 "${step[@]}" --steps 1 --warm-up 1 \
    --logits-chunk-size 128
bench leaves-helm-d leaves.py --shape helm-d-6x384 "${step[@]}" --vocab-size 8192 --steps 11
bench leaves-mice leaves.py --shape mice-120m "${step[@]}" --vocab-size 8192 --steps 11
bench sequence scaling.py sequence --dtype fp32 --threads "$THREADS" --steps 5
bench experts scaling.py experts --dtype fp32 --threads "$THREADS" --steps 9
bench attention attention.py --threads "$THREADS"
bench decode decode.py --threads "$THREADS"
OMP_NUM_THREADS=1 bench bytes scaling.py bytes --dtype bf16 --num-layers 6
