#!/bin/bash
# Writes the report of the runs in a folder. Flags go to jobs/report.py.
#   sbatch slurm/report.sh results/scaling
#   sbatch --dependency=afterany:JOBID:JOBID slurm/report.sh results/scaling
# Writes FOLDER/report.md and logs/report-JOBID.out.
#SBATCH --job-name=report
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

process report "$@"
