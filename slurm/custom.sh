#!/bin/bash
# Replaced by slurm/process.sh.
printf 'error: slurm/custom.sh is now slurm/process.sh\n  Fix: sbatch slurm/process.sh custom %s\n' "$*" >&2
exit 2
