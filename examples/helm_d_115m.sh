# shellcheck shell=bash
# HELM-D 115M: 6 dense layers, 6 heads, context 2048, vocabulary of the Llama-3.1 tokenizer.
#
# Sets MODEL_ARGS: model, training hyperparameters and layout, flags of pretrain_helm.py. Source it:
#   GPUS=64 source examples/helm_d_115m.sh
#   torchrun ... pretrain_helm.py "${MODEL_ARGS[@]}" --data-path ... --save ...
#
# Variables:
#   GEOMETRY     lorentz, or euclidean: the twin
#   GPUS         8, 64 or 512: the layout
#   SHAPE        hardware: multiples of 64; release: the widths of the authors' script, L6_W390_A6.
#                Those count the time coordinate, so 390 is --hidden-size 389; heads and rotation are
#                the release's too. Such widths divide by no tensor-parallel size.
#   TRAIN_ITERS  of 2.1 million tokens each
GEOMETRY=${GEOMETRY:-lorentz}
GPUS=${GPUS:-8}
SHAPE=${SHAPE:-hardware}
TRAIN_ITERS=${TRAIN_ITERS:-2400}

case $SHAPE in
    hardware) widths=(--hidden-size 384 --ffn-hidden-size 1536 --kv-channels 64) ;;
    release)
        widths=(
            --hidden-size 389 --ffn-hidden-size 1559 --kv-channels 64 --rotary-interleaved
            --norm-epsilon 1e-8
        )
        ;;
    *) echo "SHAPE=$SHAPE: use hardware or release" >&2 && return 1 ;;
esac

case $GPUS in
    8) layout=(--micro-batch-size 4) ;;
    64) layout=(--micro-batch-size 4) ;;
    512) layout=(--micro-batch-size 2) ;;
    *) echo "GPUS=$GPUS: use 8, 64 or 512" >&2 && return 1 ;;
esac

# shellcheck disable=SC2034  # for the script that sources this
MODEL_ARGS=(
    --geometry "$GEOMETRY"
    --num-layers 6 --num-attention-heads 6 "${widths[@]}"
    --seq-length 2048 --max-position-embeddings 2048 --vocab-size 128256
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
    --global-batch-size 1024 --train-iters "$TRAIN_ITERS"
    --lr 4e-4 --min-lr 4e-5 --lr-decay-style cosine --lr-warmup-fraction 0.03
    --weight-decay 0.01 --clip-grad 1.0 --bf16
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    "${layout[@]}"
)
