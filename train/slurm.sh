#!/usr/bin/env bash
# Trains on the nodes of a SLURM job: one torchrun on each, one process on each of its GPUs.
#
#   cd blt-titan && . .venv/bin/activate
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 train/slurm.sh \
#       --config blt_1b --dataloader.shards s3://bucket/shards --dump-folder /shared/blt-1b
#
# What follows the script's name goes to `python -m train`; what precedes it goes to SLURM, and wins
# over the lines below. All nodes have to reach the checkout, the shards and the dump folder.
#
# - Two minutes before its time is up the job puts itself back into the queue. Preempted jobs, and
#   those whose node died, are put there by SLURM. Each time it goes on from the last checkpoint:
#   --checkpoint.interval says how many steps are at most done twice.
# - When a process dies, torchrun starts all of them again from the last checkpoint, MAX_RESTARTS
#   (3) times; then the job fails and is not queued again. `sbatch` with the same arguments goes on.
# - The number of nodes and GPUs may be another one each time it is submitted.
#
# From the environment: NPROC_PER_NODE, processes on a node where that is not its number of GPUs
# (on CPUs, say); MAX_RESTARTS.
#SBATCH --job-name=blt-titan
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need ports of their own.
port=$((20000 + SLURM_JOB_ID % 10000))
# What is left of an earlier start must not join this one.
start="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"

requeue() {
    signalled=true
    if scontrol requeue "$SLURM_JOB_ID"; then
        echo "time is nearly up: job $SLURM_JOB_ID goes back into the queue"
        # Nothing is left to end where the training has just ended by itself.
        kill -TERM "$step" 2>/dev/null || true
    else
        echo "time is nearly up, and SLURM does not requeue: training goes on until then" >&2
    fi
}
trap requeue USR1

# srun does not take this over from sbatch by itself.
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

# In the foreground it would keep the signal from being handled. A signal ends `wait`, not the step,
# whose status can be asked for again, even when it is over by then.
signalled=true
while $signalled; do
    signalled=false status=0
    wait "$step" || status=$?
done
exit "$status"
