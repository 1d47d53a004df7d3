#!/usr/bin/env bash
# Training steps, leaves, attention and growth on one GPU: some minutes on an H200.
# Markdown on standard output, JSON in $OUTPUT (default: runs/benchmarks). What does not fit or fails
# is told at the end, after all else; the exit code is then 1.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} OUTPUT=${OUTPUT:-runs/benchmarks/gpu}
export CUDA_DEVICE_MAX_CONNECTIONS=1
failed=()

bench() {
    local name=$1 script=$2
    shift 2
    printf '\n### %s\n\n' "$name"
    "$PYTHON" "benchmarks/$script" "$@" --output "$OUTPUT/$name.json" || failed+=("$name")
}

"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo 'error: PyTorch sees no GPU here; make bench measures on the CPU' >&2 && exit 2; }

step=(--dtype bf16 --steps 20 --warm-up 5)
small=(--shape helm-d-6x384 --vocab-size 151669 --seq-length 2048)
bench step-helm-d-6x384 train_step.py "${small[@]}" --micro-batch-size 16 --micro-batches 4 \
    "${step[@]}"
bench step-helm-d-6x384-chunked train_step.py "${small[@]}" --micro-batch-size 16 \
    --micro-batches 4 --logits-chunk-size 512 "${step[@]}"
bench step-helm-d-16x768 train_step.py --shape helm-d-16x768 --vocab-size 32000 --seq-length 4096 \
    --micro-batch-size 8 --micro-batches 4 "${step[@]}"
bench step-mice-1b train_step.py --shape mice-1b --micro-batch-size 8 --micro-batches 4 \
    --moe-grouped-gemm "${step[@]}"
bench leaves-helm-d leaves.py "${small[@]}" --micro-batch-size 16 "${step[@]}"
bench leaves-mice-1b leaves.py --shape mice-1b --micro-batch-size 8 --moe-grouped-gemm "${step[@]}"
bench attention attention.py --lengths 1024 4096 16384
bench sequence scaling.py sequence --lengths 512 1024 2048 4096 8192 16384 32768 "${step[@]}"
bench experts scaling.py experts --shape mice-1b --experts 4 8 16 32 64 --moe-grouped-gemm \
    "${step[@]}"
bench decode decode.py --hidden-size 2048 --layers 8 --heads 16 --kv-lora-rank 512 \
    --prompts 512 4096 32768 --dtype bfloat16

if ((${#failed[@]})); then
    echo "error: failed: ${failed[*]}" >&2
    exit 1
fi
