# shellcheck shell=bash disable=SC2034 # the job scripts read step_status
# Functions of the job scripts: their settings (docs/slurm.md lists them), and one command line for
# every container runtime. Sourced in the repository's folder.

# A mistake in the settings: say it and end the job; nothing requeues it.
fail() {
    printf '%s: error: %s\n' "${SLURM_JOB_NAME:-slurm}" "$*" >&2
    exit 2
}

say() {
    printf '[%(%F %T)T] %s\n' -1 "$*"
}

# The lines of file $1, which name files, into the array inputs: without blank ones and without the
# carriage returns of other systems.
read_list() {
    local line
    [[ -f $1 && -r $1 ]] || fail "no list of input files $1"
    inputs=()
    while IFS= read -r line || [[ -n $line ]]; do
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*$ ]] || inputs+=("$line")
    done <"$1"
    ((${#inputs[@]} > 0)) || fail "$1 names no input files"
}

# The settings that have defaults; exported, since the tasks on the nodes read them.
settings() {
    export CONTAINER_RUNTIME=${CONTAINER_RUNTIME:-none}
    export CONTAINER_IMAGE=${CONTAINER_IMAGE:-}
    export CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-$PWD:$PWD}
    export CONTAINER_WORKDIR=${CONTAINER_WORKDIR:-$PWD}
    export CONTAINER_ARGS=${CONTAINER_ARGS:-}
    export CONTAINER_ENV=${CONTAINER_ENV:-}
    export GPUS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
    export PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))}
    DRY_RUN=${DRY_RUN:-0}
    if [[ $CONTAINER_RUNTIME == none ]]; then
        [[ -n ${PYTHON:-} || ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
    else
        [[ -n $CONTAINER_IMAGE ]] || fail "CONTAINER_RUNTIME=$CONTAINER_RUNTIME needs CONTAINER_IMAGE"
    fi
    export PYTHON=${PYTHON:-python3}
}

# Names of the nodes, number of them, and where the first node's rank 0 listens.
rendezvous() {
    NODE_NAMES=$(nodes_of_job)
    NNODES=$(wc -w <<<"$NODE_NAMES")
    export NODE_NAMES NNODES
    export MASTER_ADDR=${MASTER_ADDR:-${NODE_NAMES%% *}}
    # Below the range that systems hand out; jobs that share a node get different ones.
    export MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
}

nodes_of_job() {
    if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
        # The jobs' scripts run outside of images, which start under srun.
        command -v scontrol >/dev/null ||
            fail "no scontrol here: set CONTAINER_RUNTIME instead of running this script in an image"
        scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd ' '
    elif ((DRY_RUN)); then
        echo node1 node2
    else
        fail "submit me: sbatch slurm/$(basename "$0") (DRY_RUN=1 shows the command without SLURM)"
    fi
}

# Put into the array LAUNCH the srun command, up to the program, that runs once on every node in the
# container.
launch_command() {
    # A node that ends gives the others a minute; at once would cut off a checkpoint.
    LAUNCH=(srun --label --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --kill-on-bad-exit=0
        --wait=60 --cpu-bind=none ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
    local extra mount mounts
    read -ra extra <<<"$CONTAINER_ARGS"
    IFS=, read -ra mounts <<<"$CONTAINER_MOUNTS" # their paths may have spaces
    case $CONTAINER_RUNTIME in
        none) ;;
        pyxis)
            LAUNCH+=(--container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS"
                --container-workdir="$CONTAINER_WORKDIR" --no-container-mount-home "${extra[@]}")
            ;;
        apptainer)
            LAUNCH+=(apptainer exec --no-home --pwd "$CONTAINER_WORKDIR")
            for mount in "${mounts[@]}"; do LAUNCH+=(--bind "$mount"); done
            ((GPUS_PER_NODE == 0)) || LAUNCH+=(--nv)
            LAUNCH+=("${extra[@]}" "$CONTAINER_IMAGE")
            ;;
        docker | podman) LAUNCH+=(bash slurm/run_container.sh) ;;
        *) fail "CONTAINER_RUNTIME=$CONTAINER_RUNTIME is none of none pyxis apptainer docker podman" ;;
    esac
}

# Run the command line $2... as a job step with its output in file $1, or print it where DRY_RUN=1.
# It runs in the background, so that traps run at once; its exit code is in step_status.
step_status=0
run_step() {
    local output=$1 step
    shift
    if ((DRY_RUN)); then
        printf '%q ' "$@"
        echo
        return
    fi
    "$@" </dev/null >>"$output" 2>&1 &
    step=$!
    while true; do
        step_status=0
        wait "$step" || step_status=$?
        kill -0 "$step" 2>/dev/null || return 0
    done
}
