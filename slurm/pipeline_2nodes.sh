#!/bin/bash
# Replaced by slurm/ranks.sh.
printf 'error: slurm/pipeline_2nodes.sh is now slurm/ranks.sh\n  Fix: sbatch slurm/ranks.sh pipeline %s\n' "$*" >&2
exit 2
