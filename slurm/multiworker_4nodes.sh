#!/bin/bash
# Replaced by slurm/ranks.sh.
printf 'error: slurm/multiworker_4nodes.sh is now slurm/ranks.sh\n  Fix: sbatch --nodes=4 slurm/ranks.sh multiworker %s\n' "$*" >&2
exit 2
