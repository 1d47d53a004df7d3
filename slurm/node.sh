#!/usr/bin/env bash
# One node's share of a training step, inside the container: `node.sh preflight FLAGS` checks the
# node, `node.sh train FLAGS` starts its ranks; FLAGS are Megatron's. Settings come from the job.
set -euo pipefail

what=$1
shift
# Triton keeps its kernels at home, which in an image may not be, or be read-only.
if [[ -z ${TRITON_CACHE_DIR:-} && ! -w ${HOME:-/nonexistent} ]]; then
    export TRITON_CACHE_DIR=${TMPDIR:-/tmp}/triton-$UID
fi
case $what in
    preflight)
        # Of c10d's long-winded warnings, what matters is among the problems.
        export TORCH_CPP_LOG_LEVEL=ERROR
        exec "$PYTHON" -m helm_megatron.cluster.preflight --node-rank "$SLURM_NODEID" \
            --node-names "$NODE_NAMES" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
            --processes-per-node "$PROCESSES_PER_NODE" --gpus-per-node "$GPUS_PER_NODE" \
            --preflight-timeout "$PREFLIGHT_TIMEOUT" -- "$@"
        ;;
    train)
        # shellcheck disable=SC2016 # torchrun fills in the rank
        export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank${rank}] '
        exec "$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node-rank "$SLURM_NODEID" \
            --nproc-per-node "$PROCESSES_PER_NODE" \
            --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
            --tee 3 --log-dir "$ATTEMPT_DIR/ranks-$SLURM_NODEID" pretrain_helm.py "$@"
        ;;
esac
