# shellcheck shell=bash disable=SC2034 # sourced by slurm/pretrain.sbatch
# A HELM-MiCE that trains in seconds on CPUs, to try out a cluster: its experts are spread over two
# ranks, so it needs an even number of them. Without data of your own:
#
#     sbatch --nodes 2 slurm/pretrain.sbatch examples/tiny_mice.sh \
#         --mock-data --tokenizer-type NullTokenizer --vocab-size 127
MODEL_ARGS=(
    --num-layers 2 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4
    --multi-latent-attention --rope-type rope --position-embedding-type rope --kv-lora-rank 16
    --qk-head-dim 8 --qk-pos-emb-head-dim 4 --v-head-dim 8
    --num-experts 4 --moe-layer-freq "[0,1]" --moe-router-topk 2 --moe-ffn-hidden-size 32
    --moe-shared-expert-intermediate-size 32 --moe-token-dispatcher-type alltoall
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2
    --mice-curvature-init 0.3 2.0 --expert-model-parallel-size 2
    --swiglu --normalization RMSNorm --disable-bias-linear --untie-embeddings-and-output-weights
    --hidden-dropout 0 --attention-dropout 0
    --num-workers 0 --seq-length 32 --max-position-embeddings 32 --micro-batch-size 2 --global-batch-size 8
    --train-iters 100 --lr 1e-2 --log-interval 1 --eval-iters 1 --eval-interval 1000
)
