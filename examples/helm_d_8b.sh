# shellcheck shell=bash
# HELM-D 8B: the shape of Llama-3-8B (32 layers, 32 heads, 8 query groups), context 8192.
#
# Sets MODEL_ARGS: model, training hyperparameters and layout, flags of pretrain_helm.py. Source it:
#   GPUS=64 source examples/helm_d_8b.sh
#   torchrun ... pretrain_helm.py "${MODEL_ARGS[@]}" --data-path ... --save ...
#
# Variables:
#   GEOMETRY     lorentz, or euclidean: the twin
#   GPUS         8, 64 or 512: the same layout for all, with more replicas
#   TRAIN_ITERS  of 4.2 million tokens each
GEOMETRY=${GEOMETRY:-lorentz}
GPUS=${GPUS:-8}
TRAIN_ITERS=${TRAIN_ITERS:-100000}

case $GPUS in
    8 | 64 | 512) ;;
    *) echo "GPUS=$GPUS: use 8, 64 or 512" >&2 && return 1 ;;
esac
layout=(--tensor-model-parallel-size 4 --sequence-parallel --micro-batch-size 1)

# shellcheck disable=SC2034  # for the script that sources this
MODEL_ARGS=(
    --geometry "$GEOMETRY"
    --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336
    --num-attention-heads 32 --group-query-attention --num-query-groups 8 --kv-channels 128
    --seq-length 8192 --max-position-embeddings 8192 --vocab-size 128256 --rotary-base 500000
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
    --global-batch-size 512 --train-iters "$TRAIN_ITERS"
    --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-iters 2000
    --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0 --bf16
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    "${layout[@]}"
)
