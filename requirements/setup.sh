#!/usr/bin/env bash
# Makes the virtual environment .venv, or brings it up to date: pinned packages, no root, no compiler.
#
#   requirements/setup.sh wheel|site cpu|gpu|peers ROOT     (make setup and make peers call it, from ROOT)
#
# peers is cpu with PyTorch, in an environment of its own, .venv-peers.
# wheel brings an MPI library and its mpiexec; site leaves them out, because mpi4py prefers a library
# inside the environment and would never look at the cluster's module. PYTHON names the interpreter.
set -euo pipefail

readonly MPI=$1 BUILD=$2 WANTED="$*"
if [[ $BUILD == peers ]]; then readonly VENV=.venv-peers; else readonly VENV=.venv; fi
readonly DONE=$VENV/installed # what was installed, written last: without it a set-up was interrupted

# Some sites set --user for everyone, which pip refuses inside an environment.
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf 'error: %s\n  Fix: %s\n' "$1" "$2" >&2
    exit 4
}

find_python() {
    local candidate seen=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        # Pyenv's shims are on PATH even for versions that are switched off, so each is tried.
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        seen+=" $candidate ($("$candidate" --version 2>/dev/null || echo none))"
    done
    fail "expected Python 3.10 to 3.13. Got:$seen" \
        "module load a Python in that range, or name one: make setup PYTHON=/path/to/python3"
}

# Debian and Ubuntu keep ensurepip in a package that only root can add; any pip at hand will do instead.
make_environment_without_ensurepip() {
    rm -rf $VENV
    "$1" -m venv --without-pip $VENV &&
        "$1" -m pip install --quiet --target \
            "$($VENV/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip
}

make_environment() {
    local log
    log=$(mktemp)
    rm -rf $VENV
    if "$1" -m venv $VENV >"$log" 2>&1 || make_environment_without_ensurepip "$1" >>"$log" 2>&1; then
        rm "$log"
        return
    fi
    cat "$log" >&2
    rm -rf $VENV "$log"
    fail "$1 can make no virtual environment: it has neither ensurepip nor a pip that works" \
        "apt-get install python3-venv, or another interpreter: make setup PYTHON=/path/to/python3"
}

[[ $MPI == wheel || $MPI == site ]] || fail "MPI: expected wheel or site. Got: $MPI" "make setup MPI=site"

if [[ $(cat "$DONE" 2>/dev/null) == "$WANTED" ]]; then
    rm "$DONE" # same choices, newer pins
else
    python=$(find_python)
    echo "Making $VENV with $("$python" --version): the packages for $BUILD, MPI from the $MPI (a few minutes, once)"
    make_environment "$python"
fi

pip() { $VENV/bin/python -m pip "$@"; }

pins=requirements/$BUILD.txt
if [[ $MPI == site ]]; then
    pins=$VENV/pins.txt
    grep -v '^mpich==' "requirements/$BUILD.txt" >"$pins"
fi
pip install --quiet -r "$pins" || fail "the packages did not install, for the reason above" \
    "make setup where there is internet, or with a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR make setup"
pip install --quiet --no-deps --no-build-isolation --editable .
echo "$WANTED" >"$DONE"
