#!/bin/bash
# Measures how MPI training scales: plain fit on one node, and MPI on 1, 2, 4 and 8 nodes, each as a job of its
# own, then one report. Runs on the login node, submits the jobs and prints their numbers. Flags go to the
# training jobs.
#   bash slurm/scaling.sh --epochs 3
#   NODES='1 2 4' OUT=results/scaling bash slurm/scaling.sh --model mlp
# The global batch is the same at all sizes (strong scaling). Writes OUT/report.md when all jobs have ended.
# Options of sbatch, such as the time limit, come from its variables: SBATCH_TIMELIMIT=00:30:00.
set -euo pipefail
[ -f slurm/mpi_4nodes.sh ] || { echo "error: $PWD is no clone. Fix: cd CLONE" >&2; exit 4; }
command -v sbatch >/dev/null || {
    printf 'error: expected sbatch. Got: none here\n  Fix: a login node of the cluster\n' >&2
    exit 4
}

read -ra sizes <<<"${NODES:-1 2 4 8}"
out=${OUT:-results/scaling-$(date +%Y%m%d-%H%M%S)}

# submit WORD...: submits a job and prints its number, without the cluster that sbatch may add (NUMBER;CLUSTER).
submit() {
    local id
    id=$(sbatch --parsable "$@") || return
    echo "${id%%;*}"
}

submitted=$(submit slurm/baseline.sh --out "$out/baseline" "$@")
echo "baseline on 1 node: job $submitted"
for nodes in "${sizes[@]}"; do
    id=$(submit --nodes="$nodes" --cpus-per-task="${CPUS_PER_TASK:-4}" --job-name="mpi-$nodes" \
        slurm/mpi_4nodes.sh --out "$out/mpi-$nodes" "$@")
    echo "mpi on $nodes nodes: job $id"
    submitted+=:$id
done
# The report covers the jobs that succeeded.
id=$(submit --dependency="afterany:$submitted" slurm/report.sh "$out")
echo "report: job $id, $out/report.md"
