#!/usr/bin/env bash
# The study of docs/evidence.md: HELM-D, HELM-MiCE and MiCE-Const beside their twins, on one text.
#
#     bash examples/studies/evidence.sh wordnet     # glosses, which say what is a kind of what
#     bash examples/studies/evidence.sh bible       # stories and letters
#
# Trains a tokenizer, tokenizes the text, and runs geometry.toml at its laptop size: 40 trainings.
# Stopped and called again it goes on.
#
# Variables: RUN_DIR (runs/evidence), PYTHON (.venv/bin/python), AT_ONCE (2: trainings side by side).
set -euo pipefail

cd "$(dirname "$0")/../.."
RUN_DIR=${RUN_DIR:-runs/evidence}
PYTHON=${PYTHON:-.venv/bin/python}
AT_ONCE=${AT_ONCE:-2}

case ${1:-} in
    wordnet) corpus=examples/data/wordnet_glosses.jsonl.gz ;;
    bible) corpus=examples/data/asv_bible.jsonl.gz ;;
    *)
        echo "usage: bash examples/studies/evidence.sh wordnet|bible" >&2
        exit 2
        ;;
esac

# The same on every machine, also where there is a GPU; seeds are compared, not machines.
export CUDA_VISIBLE_DEVICES=""
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > AT_ONCE ? cores / AT_ONCE : 1))}
export TOKENIZER=$RUN_DIR/$1.model
export DATA=$RUN_DIR/$1_text_document

mkdir -p "$RUN_DIR"
if [[ ! -e $TOKENIZER ]]; then
    "$PYTHON" -m helm_megatron.cli train-tokenizer --input "$corpus" --vocab-size 2048 \
        --output-prefix "$RUN_DIR/$1"
fi
if [[ ! -e $DATA.idx || -e $RUN_DIR/$1.partial ]]; then
    "$PYTHON" -m helm_megatron.cli preprocess --input "$corpus" --output-prefix "$RUN_DIR/$1" \
        --tokenizer-type SentencePieceTokenizer --tokenizer-model "$TOKENIZER" --append-eod --resume
fi
exec "$PYTHON" -m helm_megatron.cli study examples/studies/geometry.toml \
    --output-dir "$RUN_DIR/$1-study" --at-once "$AT_ONCE"
