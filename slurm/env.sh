# shellcheck shell=bash
# Start of every job, and the one file that a site edits. The templates source it.
#
# sbatch reads the #SBATCH lines before this file runs. So the site's values for sbatch are variables of the
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

# A folder on each node's own disk, to which the shards are copied before training if the shared file system
# is slow or many ranks read at once. The copy is removed afterwards.
# export STAGE_TO=/tmp

# The Python environment that make setup has made, or an image that make container has built.
VENV=$PWD/.venv
# export CONTAINER=$PWD/mpi-train.sif

# ---- The suite's part ------------------------------------------------------------------------------------

[ -n "${SLURM_JOB_ID:-}" ] || fail "expected a Slurm job. Got: a plain shell" "sbatch $0"

# A job of a general template (ranks.sh, process.sh) is named after the command that it runs.
case $SLURM_JOB_NAME in
ranks | process)
    SLURM_JOB_NAME=${1:-$SLURM_JOB_NAME}
    scontrol update JobId="$SLURM_JOB_ID" JobName="$SLURM_JOB_NAME" &>/dev/null
    ;;
esac

# Slurm opens the output file before a script runs, and a job whose output folder is missing dies without a
# message. So the templates leave it at Slurm's default, in the folder of submission, and it is moved to logs/
# here: a process that holds a file open continues to write to it under its new name.
log_now=slurm-$SLURM_JOB_ID.out
log=logs/${SLURM_JOB_NAME//\//-}-$SLURM_JOB_ID.out
if [ -f "$log_now" ] && mkdir -p logs; then
    if [ -f "$log" ]; then cat "$log"; fi # the log of a requeued job begins with its previous part
    mv "$log_now" "$log"
fi

# Python is run, not only looked for: the environment of a login node may not work on this node.
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

export PYTHONUNBUFFERED=1            # so that the log can be followed
export HDF5_USE_FILE_LOCKING=FALSE   # parallel file systems often have no locks; shards are only read
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun has not read sbatch's value since Slurm 22.05
fi

# Limits on how often a job is requeued: after it was asked to stop and has saved its state (code 75), and after
# a rank was lost (code 6), as when a node has failed. A job that fails at the same place each time must end.
RESTARTS=${RESTARTS:-100}
RESTARTS_AFTER_LOSS=${RESTARTS_AFTER_LOSS:-2}

# ranks NAME [FLAG...]: runs a command of the suite as the MPI ranks that sbatch was asked for; its exit code.
ranks() {
    command_line "$@"
    # --kill-on-bad-exit=0: the first rank that ends with a code must not end the others, or the message of rank 0
    # would be lost, and the code with it. After 5 seconds the remaining ranks wait for a rank that is gone.
    # --export: otherwise sbatch --export=NONE would reach the ranks.
    "${run[@]}" srun --kill-on-bad-exit=0 --wait=5 --export=ALL "${words[@]}"
}

# process NAME [FLAG...]: runs a command of the suite as one process; its exit code.
process() {
    command_line "$@"
    "${run[@]}" "${words[@]}"
}

# command_line NAME [FLAG...]: sets "words" to the command, and "run" to the function that runs it. Ends the job if
# there is no such command.
command_line() {
    local name=${1:-} out=(--out "results/${1:-}-$SLURM_JOB_ID")
    words=(python "jobs/$name.py")
    if [ ! -f "jobs/$name.py" ]; then
        python -m mpi_train --help | grep -q "^  $name " || {
            python -m mpi_train "$name" # one error, with the names that are near
            exit 2
        }
        words=(python -m mpi_train "$name") # a strategy that was registered without a script
    fi
    run=(resumable) # a training
    case $name in
    bench* | plan | scaling) run=() ;;
    doctor | prepare_data | report | submit | watch) run=() out=() ;;
    ddp) PATH=$PWD/.venv-peers/bin:$PATH ;;
    esac
    # Only a training acts on the signal before the time limit; others would be ended by it. Children inherit this.
    [ ${#run[@]} -gt 0 ] || trap '' USR2
    words+=("${out[@]}" "${@:2}") # of two --out the last counts
}

# resumable WORD...: runs a training to its end; its exit code. Slurm signals this shell alone, two minutes before
# the time limit (--signal=B:USR2@120), and the signal is passed on.
resumable() {
    local child code asked losses=logs/.losses-$SLURM_JOB_ID
    # A requeued job resumes from its last checkpoint, whatever its flags say.
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
        [ -n "$asked" ] || break # otherwise the signal ended the wait, not the program
    done
    trap - USR2 TERM
    if [ -n "$staged" ]; then unstage; fi
    case $code in
    [0-6] | 75 | 130) ;;
    # Killed by a signal (128 and more), or ended by the MPI library.
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

# stage WORD...: copies the shards that this command reads to a folder of the job in STAGE_TO on each of its nodes,
# and sets "staged" to that folder. Fails if there are no shards, which the command itself reports best.
# shellcheck disable=SC2016 # the quoted variables are expanded on the nodes
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
    # Each node copies under a name of its own first, because STAGE_TO may be one folder for all nodes.
    each='part=$2/.$SLURM_NODEID.part; cp "$file" "$part" && mv "$part" "$2/${file##*/}" || exit'
    on_each_node bash -c 'mkdir -p "$2"; for file in "$1"/*.h5 "$1"/manifest.json; do '"$each; done" \
        - "$data" "$staged" && return
    unstage
    fail "expected room for $(du -sh "$data" | cut -f1) in $STAGE_TO on each node. Got: the error above" \
        "another STAGE_TO in slurm/env.sh, or none, to read the shards where they are"
}

# unstage: removes that folder; a node that does not answer must not delay the job.
unstage() {
    timeout 30 srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$staged" || true
}

# on_each_node WORD...: runs a command once on each node of the job.
on_each_node() {
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL "$@"
}

# requeue DONE LIMIT: requeues the job under its number, unless that was done LIMIT times for the same reason. Does not
# return after it has.
requeue() {
    local state
    state=$(squeue -h -j "$SLURM_JOB_ID" -o %T 2>/dev/null)
    # A job that its owner cancelled must stay cancelled.
    if [ "$state" != RUNNING ]; then
        echo "not queued again: the job is ${state:-unknown to squeue}"
    elif [ "$1" -ge "$2" ]; then
        echo "not queued again: requeued $1 times already. To resume: sbatch it again with --out results/..."
    else
        echo "queued again: restart $((${SLURM_RESTART_COUNT:-0} + 1))"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60 # until Slurm ends this shell
    fi
}
