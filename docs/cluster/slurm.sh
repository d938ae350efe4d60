#!/usr/bin/env bash
# Runs a job of jobs/ on a Ray cluster that it starts on the nodes of a SLURM job.
#
#   cd blt-titan && . .venv/bin/activate
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 docs/cluster/slurm.sh \
#       jobs/patch_corpus.py --input /shared/corpus --output /shared/patched --target-patch-size 4.5
#
# Arguments after the script's name are the job and its flags; those before it go to SLURM, and take
# precedence over the lines below. All nodes have to reach the checkout, the input and the output.
# (Training needs no Ray on SLURM: train/slurm.sh.)
#
# - Two minutes before its time limit the job ends and goes back into the queue; it then continues
#   where it stopped. SLURM requeues preempted jobs, too.
# - A node that dies takes only its own work with it, which the others do again.
# - The cluster has a token of its own, so that other users of the nodes cannot reach it.
#SBATCH --job-name=blt-titan
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need different ports.
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$head_node:$port"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

# srun does not inherit this from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
on_nodes=(srun --overlap --ntasks-per-node=1 --no-kill)

"${on_nodes[@]}" --nodes=1 --nodelist="$head_node" \
    ray start --head --block --port="$port" --include-dashboard=false &
ray_head=$!
until ray status --address "$RAY_ADDRESS" >/dev/null 2>&1; do
    kill -0 "$ray_head" 2>/dev/null || { echo "Ray did not start on $head_node" >&2; exit 1; }
    sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    "${on_nodes[@]}" --nodes=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head_node" \
        ray start --address="$RAY_ADDRESS" --block &
fi

requeue() {
    signalled=true
    if scontrol requeue "$SLURM_JOB_ID"; then
        echo "time is nearly up: job $SLURM_JOB_ID goes back into the queue"
        kill -TERM "$job" 2>/dev/null || true
    else
        echo "time is nearly up, and SLURM does not requeue: the job goes on until then" >&2
    fi
}

trap requeue USR1
python "$@" &
job=$!

# A signal ends `wait`, but not the job; another `wait` returns the job's status.
signalled=true
while $signalled; do
    signalled=false status=0
    wait "$job" || status=$?
done
kill "$ray_head" 2>/dev/null || true
exit "$status"
