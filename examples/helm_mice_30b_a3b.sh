# shellcheck shell=bash
# HELM-MiCE 30B-A3B: the shape of Qwen3-30B-A3B (48 layers, 128 experts of which 8 are chosen) with
# latent attention and, as every MiCE model has, a shared expert. Context 4096.
#
# Sets MODEL_ARGS: model, training hyperparameters and layout, flags of pretrain_helm.py. Source it:
#   GPUS=64 source examples/helm_mice_30b_a3b.sh
#   torchrun ... pretrain_helm.py "${MODEL_ARGS[@]}" --data-path ... --save ...
#
# Variables:
#   GEOMETRY     lorentz, or euclidean: the twin
#   GPUS         8, 64 or 512: the layout
#   TRAIN_ITERS  of 4.2 million tokens each
GEOMETRY=${GEOMETRY:-lorentz}
GPUS=${GPUS:-8}
TRAIN_ITERS=${TRAIN_ITERS:-100000}

layout=(
    --tensor-model-parallel-size 4 --sequence-parallel --pipeline-model-parallel-size 2
    --expert-model-parallel-size 8 --expert-tensor-parallel-size 1 --micro-batch-size 1
)
case $GPUS in
    8)
        # Eight GPUs of 80 GB just hold it: recomputed layers, and gradients summed in bf16.
        layout=(
            --tensor-model-parallel-size 8 --sequence-parallel
            --expert-model-parallel-size 8 --expert-tensor-parallel-size 1 --micro-batch-size 1
            --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
            --grad-reduce-in-bf16
        )
        ;;
    64 | 512) ;;
    *) echo "GPUS=$GPUS: use 8, 64 or 512" >&2 && return 1 ;;
esac

# shellcheck disable=SC2034  # for the script that sources this
MODEL_ARGS=(
    --geometry "$GEOMETRY"
    --num-layers 48 --hidden-size 2048 --ffn-hidden-size 6144 --num-attention-heads 32
    --multi-latent-attention --rope-type rope --rotary-base 1000000
    --kv-lora-rank 512 --qk-head-dim 128 --qk-pos-emb-head-dim 64 --v-head-dim 128
    --num-experts 128 --moe-router-topk 8 --moe-ffn-hidden-size 768
    --moe-shared-expert-intermediate-size 768
    --moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-dtype fp32
    --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-4
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --mice-curvature-init 0.1 2.0
    --seq-length 4096 --max-position-embeddings 4096 --vocab-size 151936
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
    --global-batch-size 1024 --train-iters "$TRAIN_ITERS"
    --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-iters 2000
    --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0 --bf16
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    "${layout[@]}"
)
