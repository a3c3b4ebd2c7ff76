#!/bin/bash
# Replaced by slurm/ranks.sh.
printf 'error: slurm/federated.sh is now slurm/ranks.sh\n  Fix: sbatch --nodes=4 slurm/ranks.sh federated %s\n' "$*" >&2
exit 2
