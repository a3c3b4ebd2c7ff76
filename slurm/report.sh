#!/bin/bash
# Writes the report over the runs in a folder. Flags go to jobs/report.py.
#   sbatch slurm/report.sh results/scaling
#   sbatch --dependency=afterok:JOBID:JOBID slurm/report.sh results/scaling
# Leaves FOLDER/report.md and logs/report-JOBID.out.
#SBATCH --job-name=report
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00
source slurm/env.sh || { echo "error: $PWD is no clone. Fix: cd CLONE, sbatch again" >&2; exit 4; }

python jobs/report.py "$@"
