# shellcheck shell=bash
# env.sh - what every job does first, and the one file that a site edits. The templates source it.
#
# sbatch reads the #SBATCH lines before this file runs, so what it needs to know stands in variables of the
# login shell (in ~/.bashrc, or in front of one command), and any flag of sbatch overrides a template's line:
#   export SBATCH_PARTITION=... SBATCH_ACCOUNT=... SBATCH_QOS=... SBATCH_MEM_PER_NODE=...
#   sbatch --nodes=8 --time=04:00:00 slurm/mpi_4nodes.sh --epochs 10

fail() { # fail MESSAGE REMEDY
    printf 'error: %s\n  Fix: %s\n' "$1" "$2" >&2
    exit 4
}

# ---- The site's part -------------------------------------------------------------------------------------

# Modules, when the environment was made with the site's own Python or MPI (make setup MPI=site).
# module purge
# module load python/3.12 openmpi/5.0 || fail "expected the modules python/3.12 openmpi/5.0" "module avail"

# The site's MPI library instead of one in the environment: libmpi.so.40 is Open MPI, libmpi.so.12 is MPICH
# and Intel MPI.
# export MPI4PY_LIBMPI=libmpi.so.40

# The protocol between srun and MPI, where the site's default does not fit: pmix for Open MPI, pmi2 for
# MPICH (also the wheel's) and Intel MPI. srun --mpi=list shows what the site has.
# export SLURM_MPI_TYPE=pmix

# A folder on each node's own disk in which the shards are copied before training, where the shared file system
# is slow or many ranks read at once. The copy is removed afterwards.
# export STAGE_TO=/tmp

# The Python environment, as make setup leaves it; or an image that make container has built.
VENV=$PWD/.venv
# export CONTAINER=$PWD/mpi-train.sif

# ---- The suite's part ------------------------------------------------------------------------------------

[ -n "${SLURM_JOB_ID:-}" ] || fail "expected a Slurm job. Got: a plain shell" "sbatch $0"

# Slurm opens the output file before a script runs, and a job whose folder for it is missing dies without a
# word. So the templates leave it at Slurm's default, in the folder of submission, which always exists, and
# it is moved to logs/ here: who holds a file open goes on writing to it under its new name.
log_now=slurm-$SLURM_JOB_ID.out
log=logs/${SLURM_JOB_NAME//\//-}-$SLURM_JOB_ID.out
if [ -f "$log_now" ] && mkdir -p logs; then
    if [ -f "$log" ]; then cat "$log"; fi # a requeued job: what it said before comes first
    mv "$log_now" "$log"
fi

# Run, not only looked for: the environment of a login node may not work on this node.
if [ -n "${CONTAINER:-}" ]; then
    export CONTAINER
    slurm/container/python -c '' || fail \
        "expected apptainer on $(hostname) and an image that it runs. Got: CONTAINER=$CONTAINER, and the above" \
        "module load apptainer in slurm/env.sh; make container, where there is internet"
    export PATH=$PWD/slurm/container:$PATH
else
    "$VENV/bin/python" -c '' 2>/dev/null ||
        fail "expected an environment in $VENV whose Python runs on $(hostname). Got: none" "make setup"
    export PATH=$VENV/bin:$PATH
fi

export PYTHONUNBUFFERED=1            # a log that can be followed
export HDF5_USE_FILE_LOCKING=FALSE   # parallel file systems often have no locks; shards are only read
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since 22.05 srun does not take it from sbatch
fi

# How often a job is queued again: after it was asked to stop and has saved where it was (code 75), and after a
# rank was lost (code 6), as when a node has failed. What fails at the same place each time must come to an end.
RESTARTS=${RESTARTS:-100}
RESTARTS_AFTER_LOSS=${RESTARTS_AFTER_LOSS:-2}

# run WORD...: runs a job's program to its end; its exit code. Slurm tells this shell alone, two minutes before
# the time is over (--signal=B:USR2@120), and it is passed on.
run() {
    local child code asked losses=logs/.losses-$SLURM_JOB_ID
    # Queued again, it goes on from its last checkpoint, whatever it was told at first.
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then set -- "$@" --resume auto; fi
    staged=
    if [ -n "${STAGE_TO:-}" ] && stage "$@"; then set -- "$@" --data "$staged"; fi
    "$@" &
    child=$!
    trap 'asked=1; kill -USR2 $child 2>/dev/null' USR2 TERM
    while :; do
        asked=
        code=0
        wait $child || code=$?
        [ -n "$asked" ] || break # else the signal ended the wait, and not the program
    done
    trap - USR2 TERM
    if [ -n "$staged" ]; then unstage; fi
    case $code in
    [0-6] | 75 | 130) ;;
    # Killed by a signal (128 and more), or ended by the MPI library: MPICH's now and then does not start, when
    # what its ranks tell each other is too long for Slurm's pmi2.
    *)
        echo "error: a rank was lost: $1 ended with code $code" >&2
        code=6
        ;;
    esac
    case $code in
    75) requeue "${SLURM_RESTART_COUNT:-0}" "$RESTARTS" ;;
    6)
        mkdir -p logs && echo >>"$losses"
        requeue $(($(wc -l <"$losses") - 1)) "$RESTARTS_AFTER_LOSS"
        ;;
    esac
    rm -f "$losses"
    return $code
}

# stage WORD...: copies the shards that a job of these words reads to a folder of its own in STAGE_TO on each of its
# nodes, and names it in "staged". Fails where there are no shards, which the job itself says best.
# shellcheck disable=SC2016 # what is quoted is expanded on the nodes
stage() {
    local data='' dataset=fashion_mnist word before='' each
    for word; do
        case $before in --data) data=$word ;; --dataset) dataset=$word ;; esac
        case $word in --data=*) data=${word#*=} ;; --dataset=*) dataset=${word#*=} ;; esac
        before=$word
    done
    data=${data:-data/$dataset}
    [ -f "$data/manifest.json" ] || return
    staged=$STAGE_TO/mpi-train-$SLURM_JOB_ID
    # Under a name of the node's own first: where STAGE_TO is one folder for all nodes, they all write to it.
    each='part=$2/.$SLURM_NODEID.part; cp "$file" "$part" && mv "$part" "$2/${file##*/}" || exit'
    on_each_node bash -c 'mkdir -p "$2"; for file in "$1"/*.h5 "$1"/manifest.json; do '"$each; done" \
        - "$data" "$staged" && return
    unstage
    fail "expected room for $(du -sh "$data" | cut -f1) in $STAGE_TO on each node. Got: the error above" \
        "another STAGE_TO in slurm/env.sh, or none: the shards are then read where they are"
}

# unstage: removes that folder; a node that does not answer must not hold up what comes next.
unstage() {
    timeout 30 srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$staged" || true
}

# on_each_node WORD...: runs a command once on each node of the job.
on_each_node() {
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL "$@"
}

# requeue DONE LIMIT: queues the job again, under its number, if that was done less than LIMIT times for the same
# reason. Does not return when it has.
requeue() {
    local state
    state=$(squeue -h -j "$SLURM_JOB_ID" -o %T 2>/dev/null)
    # Cancelled by its owner, it must not rise again.
    if [ "$state" != RUNNING ]; then
        echo "not queued again: the job is ${state:-unknown to squeue}"
    elif [ "$1" -ge "$2" ]; then
        echo "not queued again: that was done $1 times. To go on: sbatch it again with --out results/..."
    else
        echo "queued again: restart $((${SLURM_RESTART_COUNT:-0} + 1))"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60 # until Slurm ends this shell
    fi
}

# launch_ranks SCRIPT [FLAG...]: runs a job as the MPI ranks that sbatch was asked for; its exit code.
launch_ranks() {
    # When ranks end with a code, the first to go must not take the others with it: the message of rank 0
    # would be lost, and the code with it. Five seconds later whoever is left waits for a rank that is gone.
    # --export: sbatch --export=NONE would reach the ranks otherwise.
    run srun --kill-on-bad-exit=0 --wait=5 --export=ALL python "$@"
}
