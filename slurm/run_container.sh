#!/usr/bin/env bash
# Run a command in this node's docker or podman container, which is gone when this script ends.
# Such containers run outside the job's processes: what SLURM kills, they survive.
set -euo pipefail

name=helm-megatron-$SLURM_JOB_ID-$SLURM_STEP_ID-$SLURM_NODEID
options=(--rm --name "$name" --network host --ipc host --workdir "$CONTAINER_WORKDIR")
IFS=, read -ra mounts <<<"$CONTAINER_MOUNTS" # their paths may have spaces
for mount in "${mounts[@]}"; do options+=(--volume "$mount"); done
# The daemon knows nothing of SLURM's allocation: without these names a job would see, and use, the
# GPUs of others. SLURM's own are those of the whole node, as the daemon counts them.
gpus=${SLURM_STEP_GPUS:-${SLURM_JOB_GPUS:-${CUDA_VISIBLE_DEVICES:-all}}}
if ((GPUS_PER_NODE > 0)); then
    case $CONTAINER_RUNTIME in
        docker)
            # Commas within a value need quotes of docker's own.
            [[ $gpus == all ]] || gpus="\"device=$gpus\""
            options+=(--gpus "$gpus")
            ;;
        podman)
            IFS=, read -ra gpus <<<"$gpus"
            for gpu in "${gpus[@]}"; do options+=(--device "nvidia.com/gpu=$gpu"); done
            ;;
    esac
fi
# By name only: values, which may be secrets, are not on the command line.
for variable in PYTHON NODE_NAMES NNODES MASTER_ADDR MASTER_PORT PROCESSES_PER_NODE GPUS_PER_NODE \
    PREFLIGHT_TIMEOUT ATTEMPT_DIR OMP_NUM_THREADS TORCH_ELASTIC_SHUTDOWN_TIMEOUT \
    CUDA_DEVICE_MAX_CONNECTIONS TRITON_CACHE_DIR SLURM_JOB_ID SLURM_NODEID ${!NCCL_*} $CONTAINER_ENV; do
    options+=(--env "$variable")
done
read -ra extra <<<"$CONTAINER_ARGS"

trap '"$CONTAINER_RUNTIME" rm --force "$name" >/dev/null 2>&1' EXIT
terminated=0
# The client hands TERM on to the container by itself.
trap 'terminated=$SECONDS' TERM

"$CONTAINER_RUNTIME" run "${options[@]}" "${extra[@]}" "$CONTAINER_IMAGE" "$@" &
client=$!
status=0
while kill -0 "$client" 2>/dev/null; do
    # Of a cancelled job SLURM soon kills this script, too late for the container.
    if [[ -e ${ATTEMPT_DIR:-}/cancelled ]] && ((terminated && SECONDS > terminated + 5)); then
        exit 143
    fi
    sleep 1
done
wait "$client" || status=$?
exit "$status"
