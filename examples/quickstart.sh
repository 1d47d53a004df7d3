#!/usr/bin/env bash
# From text to a trained HELM-MiCE in a few minutes, on the CPU of one machine.
#
# Trains a tokenizer on WordNet's glosses, tokenizes them, trains a small mixture of experts of
# different curvatures in two processes (expert parallel), stops half-way, resumes, and compares the
# validation loss with the unigram entropy. Then exports the model to Hugging Face's format, lets it
# write, and evaluates it by lm-eval without a network. Run again, it goes on where it was; `make
# clean` and it starts over.
#
# Arguments are further flags of the training, as --geometry euclidean or --seed 2.
# Variables: RUN_DIR (runs/quickstart), PYTHON (.venv/bin/python), ITERATIONS (400; an even number).
set -euo pipefail

cd "$(dirname "$0")/.."
RUN_DIR=${RUN_DIR:-runs/quickstart}
PYTHON=${PYTHON:-.venv/bin/python}
ITERATIONS=${ITERATIONS:-400}
CORPUS=examples/data/wordnet_glosses.jsonl.gz
SPLIT=95,5,0

# The same on every machine, also where there is a single GPU: two processes on the CPU.
export CUDA_VISIBLE_DEVICES=""
export LC_ALL=C
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 2 ? cores / 2 : 1))}

DATA=$RUN_DIR/wordnet_text_document
HF=$RUN_DIR/hf
MODEL=(
    --num-layers 4 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4
    --multi-latent-attention --kv-lora-rank 48 --qk-head-dim 32 --qk-pos-emb-head-dim 16
    --v-head-dim 32 --rope-type rope --position-embedding-type rope
    --num-experts 4 --moe-layer-freq "[0,1,1,1]" --moe-router-topk 2 --moe-ffn-hidden-size 192
    --moe-shared-expert-intermediate-size 192 --moe-token-dispatcher-type alltoall
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01
    --mice-curvature-init 0.1 2.0
    --swiglu --normalization RMSNorm --disable-bias-linear
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
)
TEXT=(
    --data-path "$DATA" --split "$SPLIT" --data-cache-path "$RUN_DIR/cache"
    --tokenizer-type SentencePieceTokenizer --tokenizer-model "$RUN_DIR/wordnet.model"
    --seq-length 128 --max-position-embeddings 128 --num-workers 1
)
TRAINING=(
    --expert-model-parallel-size 2 --micro-batch-size 8 --global-batch-size 16
    --train-iters "$ITERATIONS" --exit-interval "$((ITERATIONS / 2))"
    --lr 3e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --weight-decay 0.1 --clip-grad 1.0
    --eval-interval "$((ITERATIONS / 4))" --eval-iters 8
    --save "$RUN_DIR/checkpoints" --load "$RUN_DIR/checkpoints"
    --save-interval "$((ITERATIONS / 2))"
    --log-interval 10 --tensorboard-dir "$RUN_DIR/tensorboard" --tensorboard-log-interval 5
)

FURTHER=("$@")

step() {
    printf '\n[%s] %s\n' "$1" "$2"
}

# Megatron's progress log; what it says at start-up is in the log file.
progress() {
    grep --line-buffered -E '(^| )iteration +[0-9]+/|helm at|validation loss|checkpoint at|exiting'
}

train() {
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 2 \
        pretrain_helm.py "${MODEL[@]}" "${TEXT[@]}" "${TRAINING[@]}" "${FURTHER[@]}"
}

# Train with the output in file $1; where it fails, show why.
run_training() {
    if ! train 2>&1 | tee "$1" | progress; then
        grep -E 'Error:|error:' "$1" | grep -v ChildFailedError | tail -n 3 >&2 || true
        echo "error: training failed; the whole log is $1" >&2
        exit 1
    fi
}

# Run a command with its messages in a log file named $1; where it fails, show the last of them.
run_quietly() {
    local log=$RUN_DIR/$1.log
    if ! "${@:2}" 2>"$log"; then
        tail -n 1 "$log" >&2
        exit 1
    fi
}

mkdir -p "$RUN_DIR"

step 1/8 "A tokenizer of 4,096 tokens, trained on $CORPUS"
if [[ ! -e $RUN_DIR/wordnet.model ]]; then
    "$PYTHON" tools/train_tokenizer.py --input "$CORPUS" --vocab-size 4096 \
        --output-prefix "$RUN_DIR/wordnet"
fi

step 2/8 "The text as tokens: $DATA.bin and .idx"
if [[ ! -e $DATA.idx ]]; then
    "$PYTHON" tools/preprocess_data.py --input "$CORPUS" --output-prefix "$RUN_DIR/wordnet" \
        --tokenizer-type SentencePieceTokenizer --tokenizer-model "$RUN_DIR/wordnet.model" \
        --append-eod
fi

if [[ ! -e $RUN_DIR/checkpoints/latest_checkpointed_iteration.txt ]]; then
    step 3/8 "Training up to iteration $((ITERATIONS / 2)) of $ITERATIONS, stopped there on purpose"
    run_training "$RUN_DIR/train.log"
fi

step 4/8 "The same command again: it resumes from its checkpoint"
run_training "$RUN_DIR/resume.log"

step 5/8 "How well it does"
entropy=$("$PYTHON" tools/unigram_entropy.py --data-path "$DATA" --split "$SPLIT" 2>"$RUN_DIR/entropy.log")
"$PYTHON" tools/plot_losses.py --tensorboard-dir "$RUN_DIR/tensorboard" \
    --output "$RUN_DIR/loss.png" --unigram-entropy "$entropy"

step 6/8 "The last checkpoint in Hugging Face's format: $HF"
if [[ ! $HF/config.json -nt $RUN_DIR/checkpoints/latest_checkpointed_iteration.txt ]]; then
    rm -rf "$HF"
    run_quietly export "$PYTHON" tools/checkpoint/convert.py --from megatron --to hf \
        --load "$RUN_DIR/checkpoints" --save "$HF"
    grep '^logits' "$RUN_DIR/export.log"
fi

step 7/8 "What it writes"
run_quietly generate "$PYTHON" tools/generate.py --load "$HF" --prompt "dog: a kind of"

step 8/8 "lm-eval: questions on WordNet that it was not trained on, and on MMLU's subjects"
"$PYTHON" tools/evaluate.py --load "$HF" --tasks offline \
    --output-dir "$RUN_DIR/evaluation" --overwrite --update-card
echo
echo "A model this small, trained for minutes, is close to guessing; MMLU is beyond it."
echo
echo "Next: train on your own text, see 'Train on your own data' in README.md."
