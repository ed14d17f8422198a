#!/usr/bin/env bash
# Slurm: a Ray cluster for the time of one job, on machines that share a file system; README.md says how it is used.
#   sbatch cluster/slurm.sh [CONFIG [key=value ...]]
# Submit it from the repository's root, with .venv set up there (pip install '.[gpu]'). Partition and account are those
# of your site: sbatch --partition ... --account ... cluster/slurm.sh
#SBATCH --job-name=calibrated-rl
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=200G
#SBATCH --time=24:00:00
#SBATCH --output=calibrated-rl-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
config=${1:-configs/dev.yaml}
shift || true

# The token is read from a file in the shared home, which `ray get-auth-token --generate` writes once.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then
    echo "There is no token in $RAY_AUTH_TOKEN_PATH; make one: .venv/bin/ray get-auth-token --generate" >&2
    exit 2
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export PATH=$PWD/.venv/bin:$PATH

# Starts Ray on every machine, runs the job on the first, stops Ray: every Ray of this user on these machines, which is
# one reason why the job asks for whole machines.
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    env RAY_ADDRESS=auto python jobs/compare.py "$config" --hardware cluster --runs runs "$@"
