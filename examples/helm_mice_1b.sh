# shellcheck shell=bash
# HELM-MiCE 1B: 16 layers (1 dense), latent attention, 8 experts of which 2 are chosen, 1 shared.
#
# Sets MODEL_ARGS: model, training hyperparameters and layout, flags of pretrain_helm.py. Source it:
#   GPUS=64 source examples/helm_mice_1b.sh
#   torchrun ... pretrain_helm.py "${MODEL_ARGS[@]}" --data-path ... --save ...
#
# Variables:
#   GEOMETRY     lorentz, or euclidean: the twin
#   GPUS         8, 64 or 512: the layout
#   SHAPE        hardware: multiples of 64; release: the widths of the authors' script (dim 910,
#                inter_dim 3640, mice_inter_dim 1820, kv_lora_rank 257, qk_nope 65, qk_rope 65, v
#                65). All but kv_lora_rank and qk_nope count the time coordinate and are one less
#                here. Such widths divide by no tensor-parallel size. --kv-channels has no meaning
#                with latent attention; Megatron wants it where heads do not divide.
#   TRAIN_ITERS  of 2.1 million tokens each
#
# Routing and combination are Megatron's and the paper's. The released code's are --mice-routing
# reference, --mice-bias-update proportional --moe-router-bias-update-rate 0.005 and --mice-combine
# reference: append them to MODEL_ARGS (docs/from-the-helm-release.md has the whole command).
# The learning rate is HELM-D's.
GEOMETRY=${GEOMETRY:-lorentz}
GPUS=${GPUS:-8}
SHAPE=${SHAPE:-hardware}
TRAIN_ITERS=${TRAIN_ITERS:-10000}

case $SHAPE in
    hardware)
        widths=(
            --hidden-size 896 --ffn-hidden-size 3584 --moe-ffn-hidden-size 1792
            --moe-shared-expert-intermediate-size 1792
            --kv-lora-rank 256 --qk-head-dim 64 --qk-pos-emb-head-dim 64 --v-head-dim 64
        )
        ;;
    release)
        widths=(
            --hidden-size 909 --ffn-hidden-size 3639 --moe-ffn-hidden-size 1819
            --moe-shared-expert-intermediate-size 1819
            --kv-channels 64 --kv-lora-rank 257 --qk-head-dim 65 --qk-pos-emb-head-dim 64 --v-head-dim 64
            --norm-epsilon 1e-8
        )
        ;;
    *) echo "SHAPE=$SHAPE: use hardware or release" >&2 && return 1 ;;
esac

case $GPUS in
    8) layout=(--micro-batch-size 2) ;;
    64) layout=(--micro-batch-size 2) ;;
    512) layout=(--micro-batch-size 2) ;;
    *) echo "GPUS=$GPUS: use 8, 64 or 512" >&2 && return 1 ;;
esac

# shellcheck disable=SC2034  # for the script that sources this
MODEL_ARGS=(
    --geometry "$GEOMETRY"
    --num-layers 16 --num-attention-heads 14 "${widths[@]}"
    --multi-latent-attention --rope-type rope
    --num-experts 8 --moe-router-topk 2 --moe-layer-freq "[0]+[1]*15"
    --moe-router-score-function softmax --moe-router-pre-softmax --moe-router-dtype fp32
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-4
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm
    --seq-length 2048 --max-position-embeddings 2048 --vocab-size 128256
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
    --global-batch-size 1024 --train-iters "$TRAIN_ITERS"
    --lr 4e-4 --min-lr 4e-5 --lr-decay-style cosine --lr-warmup-fraction 0.03
    --weight-decay 0.01 --clip-grad 1.0 --bf16
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    "${layout[@]}"
)
