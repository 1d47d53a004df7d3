#!/usr/bin/env bash
# From text to a trained HELM-MiCE in a few minutes, on the CPU of one machine.
#
# Trains a tokenizer on WordNet's nouns and verbs ("dog, domestic dog: a kind of canine."), tokenizes
# them, trains a small mixture of experts of different curvatures in two processes (expert parallel),
# stops half-way, resumes, and compares the validation loss with the unigram entropy. Then exports the
# model to Hugging Face's format, lets it write, and evaluates it by lm-eval without a network.
# Stopped, in whatever way, and run again, it goes on where it was; `make clean` and it starts over.
#
# Arguments are further flags of the training, as --geometry euclidean or --seed 2.
# Variables: RUN_DIR (runs/quickstart), PYTHON (.venv/bin/python), ITERATIONS (1000; a multiple of 4).
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 1
}

cd "$(dirname "$0")/.."
RUN_DIR=${RUN_DIR:-runs/quickstart}
PYTHON=${PYTHON:-.venv/bin/python}
ITERATIONS=${ITERATIONS:-1000}
if ! [[ $ITERATIONS =~ ^[1-9][0-9]*$ ]] || ((ITERATIONS % 4)); then
    fail "ITERATIONS=$ITERATIONS: not a multiple of 4"
fi
CORPUS=examples/data/wordnet_hypernyms.jsonl.gz
SPLIT=95,5,0

# The same on every machine, also where there is a single GPU: two processes on the CPU.
export CUDA_VISIBLE_DEVICES=""
export LC_ALL=C
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 2 ? cores / 2 : 1))}

DATA=$RUN_DIR/wordnet_text_document
HF=$RUN_DIR/hf
MODEL=(
    --num-layers 2 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4
    --multi-latent-attention --kv-lora-rank 48 --qk-head-dim 32 --qk-pos-emb-head-dim 16
    --v-head-dim 32 --rope-type rope --position-embedding-type rope
    --num-experts 4 --moe-layer-freq "[0,1]" --moe-router-topk 2 --moe-ffn-hidden-size 192
    --moe-shared-expert-intermediate-size 192 --moe-token-dispatcher-type alltoall
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01
    --mice-curvature-init 0.1 2.0
    --swiglu --normalization RMSNorm --disable-bias-linear
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
)
TEXT=(
    --data-path "$DATA" --split "$SPLIT" --data-cache-path "$RUN_DIR/cache"
    --tokenizer-type SentencePieceTokenizer --tokenizer-model "$RUN_DIR/wordnet.model"
    --seq-length 64 --max-position-embeddings 128 --num-workers 1
)
TRAINING=(
    --expert-model-parallel-size 2 --micro-batch-size 16 --global-batch-size 32
    --train-iters "$ITERATIONS" --exit-interval "$((ITERATIONS / 2))"
    --lr 6e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
    --eval-interval "$((ITERATIONS / 4))" --eval-iters 8
    --save "$RUN_DIR/checkpoints" --load "$RUN_DIR/checkpoints"
    --save-interval "$((ITERATIONS / 2))"
    --log-interval 10 --tensorboard-dir "$RUN_DIR/tensorboard" --tensorboard-log-interval 5
)

FURTHER=("$@")
TRACKER=$RUN_DIR/checkpoints/latest_checkpointed_iteration.txt

step() {
    printf '\n[%s] %s\n' "$1" "$2"
}

# A Python program that ends when this script does, however that ends.
python() {
    setpriv --pdeathsig TERM "$PYTHON" "$@"
}

# Ranks are children of torch's launcher, which cannot end them where it is killed itself.
train() {
    exec setpriv --pdeathsig TERM "$PYTHON" -m torch.distributed.run --standalone \
        --nproc_per_node 2 --no-python \
        setpriv --pdeathsig KILL "$PYTHON" -u pretrain_helm.py \
        "${MODEL[@]}" "${TEXT[@]}" "${TRAINING[@]}" "${FURTHER[@]}"
}

# Train with the output in file $1, and its progress shown; where it fails, show why.
run_training() {
    if ! train 2>&1 | tee --ignore-interrupts "$1" | python examples/quickstart_log.py; then
        grep -E 'Error:|error:' "$1" | grep -v ChildFailedError | tail -n 3 >&2 || true
        fail "training failed; the whole log is $1"
    fi
}

# Run a Python program with its messages in a log file named $1; where it fails, show the last.
run_quietly() {
    local log=$RUN_DIR/$1.log
    if ! python "${@:2}" 2>"$log"; then
        tail -n 1 "$log" >&2
        exit 1
    fi
}

# What is in RUN_DIR, and what is asked of it now: its training must be one.
check_settings() {
    local asked settings begun
    asked="ITERATIONS=$ITERATIONS${FURTHER[*]:+ ${FURTHER[*]}}"
    settings="${MODEL[*]} ${TEXT[*]} ${TRAINING[*]}"
    settings=$(printf '%s\n' "$asked" "${settings//"$RUN_DIR"/RUN_DIR}")
    if [[ -s $RUN_DIR/settings ]]; then
        [[ $(<"$RUN_DIR/settings") != "$settings" ]] || return 0
        begun=$(head -n 1 "$RUN_DIR/settings")
        [[ $begun != "$asked" ]] || begun="other settings in this script"
    elif [[ -e $RUN_DIR/checkpoints ]]; then
        begun="an earlier version of this script"
    else
        printf '%s\n' "$settings" >"$RUN_DIR/settings"
        return 0
    fi
    fail "$RUN_DIR was begun with $begun, not $asked: remove it (make clean) or set another RUN_DIR"
}

mkdir -p "$RUN_DIR"
trap 'echo; echo "stopped; the same command goes on from here" >&2; exit 130' INT
# Held by this script and the programs that it starts, until the last of them has ended.
exec {lock}>"$RUN_DIR/lock"
flock --wait 20 "$lock" ||
    fail "another quickstart is at work in $RUN_DIR: wait for it, or set another RUN_DIR"
check_settings
rm -rf "$RUN_DIR"/.staged-*  # of a tokenizer's training that was killed

step 1/8 "A tokenizer of 4,096 tokens, trained on $CORPUS"
if [[ -e $RUN_DIR/wordnet.model ]]; then
    echo "$RUN_DIR/wordnet.model: there already"
else
    python tools/train_tokenizer.py --input "$CORPUS" --vocab-size 4096 \
        --output-prefix "$RUN_DIR/wordnet"
fi

step 2/8 "The text as tokens: $DATA.bin and .idx"
if [[ -e $DATA.idx && ! -e $RUN_DIR/wordnet.partial ]]; then
    echo "$DATA.idx: there already"
else
    python tools/preprocess_data.py --input "$CORPUS" --output-prefix "$RUN_DIR/wordnet" \
        --tokenizer-type SentencePieceTokenizer --tokenizer-model "$RUN_DIR/wordnet.model" \
        --append-eod --resume
fi

# Megatron writes a checkpoint first and its number last, here, but not in one step: where the number
# is missing, the run starts anew.
[[ -s $TRACKER ]] || rm -f "$TRACKER"

step 3/8 "Training up to iteration $((ITERATIONS / 2)) of $ITERATIONS, stopped there on purpose"
if [[ -e $TRACKER ]]; then
    echo "there is a checkpoint of iteration $(<"$TRACKER") already"
else
    run_training "$RUN_DIR/train.log"
fi

step 4/8 "The same command again: it resumes from its checkpoint"
if [[ -e $RUN_DIR/trained ]]; then
    echo "trained already"
else
    run_training "$RUN_DIR/resume.log"
    touch "$RUN_DIR/trained"
fi

step 5/8 "How well it does"
entropy=$(python tools/unigram_entropy.py --data-path "$DATA" --split "$SPLIT" \
    2>"$RUN_DIR/entropy.log") || fail "$(tail -n 1 "$RUN_DIR/entropy.log")"
python tools/plot_losses.py --tensorboard-dir "$RUN_DIR/tensorboard" \
    --output "$RUN_DIR/loss.png" --unigram-entropy "$entropy"

step 6/8 "The last checkpoint in Hugging Face's format: $HF"
if [[ $HF/config.json -nt $RUN_DIR/trained ]]; then
    echo "$HF: there already"
else
    rm -rf "$HF"
    run_quietly export tools/checkpoint/convert.py --from megatron --to hf \
        --load "$RUN_DIR/checkpoints" --save "$HF"
    grep '^logits' "$RUN_DIR/export.log"
fi

step 7/8 "What it writes"
run_quietly generate tools/generate.py --load "$HF" --prompt "dog: a kind of"

step 8/8 "lm-eval: questions on WordNet that it was not trained on, and on MMLU's subjects"
EVALUATION=$RUN_DIR/evaluation
# The model card is changed last.
if [[ $EVALUATION/scores.json -nt $HF/config.json && $HF/README.md -nt $EVALUATION/scores.json ]]; then
    echo "evaluated already: $EVALUATION"
    cat "$EVALUATION/scores.md"
else
    python tools/evaluate.py --load "$HF" --tasks offline --batch-size 64 \
        --unigram-data "$DATA" --split "$SPLIT" --output-dir "$EVALUATION" --overwrite --update-card
fi
echo
python examples/quickstart_scores.py "$EVALUATION/scores.json"
echo
echo "Next: train on your own text, see 'Train on your own data' in README.md."
