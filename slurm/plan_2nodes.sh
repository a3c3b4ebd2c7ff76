#!/bin/bash
# Replaced by slurm/ranks.sh.
printf 'error: slurm/plan_2nodes.sh is now slurm/ranks.sh\n  Fix: sbatch --exclusive --time=00:15:00 slurm/ranks.sh plan %s\n' "$*" >&2
exit 2
