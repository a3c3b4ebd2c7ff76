#!/usr/bin/env bash
# Makes the virtual environment .venv, or brings it up to date: pinned packages, no root, no compiler.
#
#   requirements/setup.sh wheel|site cpu|gpu ROOT     (make setup calls it, from ROOT)
#
# wheel brings an MPI library and its mpiexec; site leaves them out, because mpi4py prefers a library
# inside the environment and would never look at the cluster's module. PYTHON names the interpreter.
set -euo pipefail

readonly MPI=$1 BUILD=$2 WANTED="$*"
readonly DONE=.venv/installed # what was installed, written last: without it a set-up was interrupted

fail() {
    printf 'error: %s\n  To mend it: %s\n' "$1" "$2" >&2
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
    fail "expected Python 3.10 to 3.13. Received:$seen" \
        "module load a Python in that range, or name one: make setup PYTHON=/path/to/python3"
}

make_environment() {
    local python=$1 log=.venv.log
    rm -rf .venv
    if ! "$python" -m venv .venv >"$log" 2>&1; then
        # Debian and Ubuntu keep ensurepip in a package that only root can add; a pip at hand will do.
        rm -rf .venv
        "$python" -m venv --without-pip .venv >>"$log" 2>&1 &&
            "$python" -m pip install --quiet --disable-pip-version-check pip --target \
                "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >>"$log" 2>&1 || {
            cat "$log" >&2
            rm -rf .venv "$log"
            fail "$python can make no virtual environment: it has neither ensurepip nor pip" \
                "apt-get install python3-venv, or another interpreter: make setup PYTHON=/path/to/python3"
        }
    fi
    rm -f "$log"
}

[[ $MPI == wheel || $MPI == site ]] || fail "MPI: expected wheel or site. Received: $MPI" "make setup MPI=site"

if [[ $(cat "$DONE" 2>/dev/null) == "$WANTED" ]]; then
    rm "$DONE" # same choices, newer pins
else
    python=$(find_python)
    echo "Making .venv with $("$python" --version): TensorFlow for $BUILD, MPI from the $MPI (a few minutes, once)"
    make_environment "$python"
fi

# Some sites set --user for everyone, which pip refuses inside an environment.
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { .venv/bin/python -m pip "$@"; }

pins=requirements/$BUILD.txt
if [[ $MPI == site ]]; then
    pins=.venv/pins.txt
    grep -v '^mpich==' "requirements/$BUILD.txt" >"$pins"
fi
pip install --quiet -r "$pins"
pip install --quiet --no-deps --no-build-isolation --editable .
echo "$WANTED" >"$DONE"
