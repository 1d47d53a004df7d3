# shellcheck shell=bash
# HELM-MiCE 120M: 6 layers (1 dense), latent attention, 4 experts of which 2 are chosen, 1 shared.
#
# Sets MODEL_ARGS: model, training hyperparameters and layout, flags of pretrain_helm.py. Source it:
#   GPUS=64 source examples/helm_mice_120m.sh
#   torchrun ... pretrain_helm.py "${MODEL_ARGS[@]}" --data-path ... --save ...
#
# Variables:
#   GEOMETRY     lorentz, or euclidean: the twin
#   GPUS         8, 64 or 512: the layout
#   SHAPE        hardware: multiples of 16 and more; release: the widths of the authors' script
#                (dim 390, inter_dim 1560, mice_inter_dim 780, kv_lora_rank 65, qk_nope 33, qk_rope
#                17, v 33). All but kv_lora_rank and qk_nope count the time coordinate and are one
#                less here. Such widths divide by no tensor-parallel size. --kv-channels has
#                no meaning with latent attention; Megatron wants it where heads do not divide.
#   TRAIN_ITERS  of 2.1 million tokens each
#
# Routing and combination are Megatron's and the paper's. The released code's are --mice-routing
# reference, --mice-bias-update proportional --moe-router-bias-update-rate 0.005 and --mice-combine
# reference: append them to MODEL_ARGS (docs/from-the-helm-release.md has the whole command).
GEOMETRY=${GEOMETRY:-lorentz}
GPUS=${GPUS:-8}
SHAPE=${SHAPE:-hardware}
TRAIN_ITERS=${TRAIN_ITERS:-2400}

case $SHAPE in
    hardware)
        widths=(
            --hidden-size 384 --ffn-hidden-size 1536 --moe-ffn-hidden-size 768
            --moe-shared-expert-intermediate-size 768
            --kv-lora-rank 64 --qk-head-dim 32 --qk-pos-emb-head-dim 16 --v-head-dim 32
        )
        ;;
    release)
        widths=(
            --hidden-size 389 --ffn-hidden-size 1559 --moe-ffn-hidden-size 779
            --moe-shared-expert-intermediate-size 779
            --kv-channels 64 --kv-lora-rank 65 --qk-head-dim 33 --qk-pos-emb-head-dim 16 --v-head-dim 32
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
    --multi-latent-attention --rope-type rope
    --num-experts 4 --moe-router-topk 2 --moe-layer-freq "[0]+[1]*5"
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
