#!/bin/bash
#SBATCH --job-name=mtloop
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append
#SBATCH --signal=USR1@300
# Pick this for a job of SLURM, on one node or on several (--nodes). Its words are those of mtloop:
#   sbatch accelerate_configs/slurm.sh train kde4-en-fr --output_dir runs/mine
# Change: the lines above, or give their flags to sbatch; then what the nodes need (modules, HF_HUB_OFFLINE).
#
# USR1 comes five minutes before the time limit: the run saves and ends, and the job is requeued. A preemption sends TERM;
# SLURM then requeues the job itself.
export HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun takes no --cpus-per-task from sbatch since SLURM 22.05
export MTLOOP_RUN_LINK=$(mktemp -d)/run  # the run links its folder here
# A process for each GPU of a node. Without GPUs one a node, with all its cores: faster than several.
srun bash -c '
    gpus=${SLURM_GPUS_ON_NODE:-0}
    exec python -m mtloop launch multi_node \
        --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$HEAD_NODE" --main_process_port $((20000 + SLURM_JOB_ID % 10000)) \
        --num_processes $((SLURM_NNODES * (gpus > 0 ? gpus : 1))) "$@"
' bash "$@"
status=$?
if grep -qs '"status": "stopped"' "$MTLOOP_RUN_LINK/status.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
