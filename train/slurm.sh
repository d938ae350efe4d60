#!/usr/bin/env bash
# Trains on the nodes of a SLURM job, with one torchrun per node and one process per GPU.
#
#   cd blt-titan && . .venv/bin/activate
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 train/slurm.sh \
#       --config blt_1b --dataloader.shards s3://bucket/shards --dump-folder /shared/blt-1b
#
# Arguments after the script's name go to `python -m train`; those before it go to SLURM, and take
# precedence over the lines below. All nodes have to reach the checkout, the shards and the dump
# folder.
#
# - Two minutes before its time limit the job requeues itself. SLURM requeues preempted jobs and
#   those whose node died. Each time the job resumes from the last checkpoint, so that it repeats at
#   most --checkpoint.interval steps.
# - When a process dies, torchrun restarts all processes from the last checkpoint, up to MAX_RESTARTS
#   (3) times; then the job fails and is not requeued. `sbatch` with the same arguments resumes it.
# - Each submission may have another number of nodes and GPUs.
#
# Environment variables: NPROC_PER_NODE, processes per node if that is not the number of its GPUs
# (on CPUs, for example); MAX_RESTARTS.
#SBATCH --job-name=blt-titan
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need different ports.
port=$((20000 + SLURM_JOB_ID % 10000))
# Processes of an earlier start must not join this one.
start="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"

requeue() {
    signalled=true
    if scontrol requeue "$SLURM_JOB_ID"; then
        echo "time is nearly up: job $SLURM_JOB_ID goes back into the queue"
        # The training may have just ended by itself.
        kill -TERM "$step" 2>/dev/null || true
    else
        echo "time is nearly up, and SLURM does not requeue: training continues until then" >&2
    fi
}
trap requeue USR1

# srun does not inherit this from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
    python -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
    --max-restarts "${MAX_RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "$head_node:$port" --rdzv-id "$start" \
    --local-ranks-filter 0 \
    -m train "$@" &
step=$!

# bash handles no signal while a command runs in the foreground, so the step runs in the background.
# A signal ends `wait`, but not the step; another `wait` returns the step's status, even if the step
# has ended in between.
signalled=true
while $signalled; do
    signalled=false status=0
    wait "$step" || status=$?
done
exit "$status"
