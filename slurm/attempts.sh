# shellcheck shell=bash disable=SC2154 # the settings are those of pretrain.sbatch
# When a training job starts again and when it does not. A job that SLURM requeues keeps its id and
# runs its script from the start: an attempt. $LOG_DIR/progress holds the iteration at which each
# attempt began.

stopping=0
was_cancelled=0

# The last iteration that is saved; 0 if there is none.
saved_iteration() {
    local tracker=$CHECKPOINT_DIR/latest_checkpointed_iteration.txt
    if [[ -r $tracker ]]; then cat "$tracker"; else echo 0; fi
}

# How many of the last attempts began where the checkpoint still is.
attempts_without_progress() {
    local now count=0 line
    now=$(saved_iteration)
    while read -r line; do
        if [[ $line == "$now" ]]; then count=$((count + 1)); else count=0; fi
    done <"$LOG_DIR/progress"
    echo "$count"
}

# Note where this attempt begins; end the job if too many before it came no further (SLURM itself
# requeues a job whose node failed, without asking end_attempt).
begin_attempt() {
    saved_iteration >>"$LOG_DIR/progress"
    if (($(attempts_without_progress) > ${MAX_RESTARTS:-3} + 1)); then
        say "no progress beyond iteration $(saved_iteration) in ${MAX_RESTARTS:-3} restarts: the end"
        exit 1
    fi
}

# Before the time limit: Megatron saves and ends when it gets TERM; then end_attempt requeues.
stop_and_requeue() {
    say "asked to stop: Megatron saves a checkpoint and ends"
    stopping=1
    # To the steps only, and not by way of srun, which would cut the nodes' output off.
    scancel --signal=TERM "$SLURM_JOB_ID"
}

# scancel, or a time limit without a signal before it: SLURM ends every process by itself.
cancelled() {
    was_cancelled=1
    touch "$ATTEMPT_DIR/cancelled"
}

# Requeue the job, or end it with the step's result.
end_attempt() {
    if ((was_cancelled)); then
        say "cancelled at iteration $(saved_iteration)"
        exit 143
    elif ((step_status == 0 && !stopping)); then
        say "training is done, at iteration $(saved_iteration)"
        exit 0
    elif ((!stopping)); then
        say "training failed with exit code $step_status; the whole log is $log"
        # What the program itself explains would only happen again.
        if grep -m 5 -E 'pretrain_helm\.py: error' "$log"; then
            exit 1
        fi
        grep -E 'Error|error:' "$log" | grep -v ChildFailedError | head -n 10 || true
    fi
    if [[ ${REQUEUE:-1} != 1 ]]; then
        say "saved iteration: $(saved_iteration); not requeued, since REQUEUE=$REQUEUE"
        exit 1
    elif (($(attempts_without_progress) > ${MAX_RESTARTS:-3})); then
        say "no progress beyond iteration $(saved_iteration) in ${MAX_RESTARTS:-3} restarts: the end"
        exit 1
    fi
    say "requeued, to go on from iteration $(saved_iteration)"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 600 # until SLURM ends this script; its own end would be the job's
}
