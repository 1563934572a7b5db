#!/usr/bin/env bash
# Installs the gateway as it runs in production: a virtual environment with exactly what is locked,
# compiled, and without anything that installs or builds. The Dockerfile's only build step.
#
#   deploy/install.sh SOURCE PREFIX     from the folder of this repository into the new PREFIX
#   deploy/install.sh --strip PREFIX    takes pip and its kin from a Python that is there already
#
# SOURCE is only read. Python 3.11 or newer with venv must be there; PYTHON names another one.
set -euo pipefail
umask 022
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=2

# Locked for building the wheel, needed by nothing that runs; a test compares what is left with
# what the gateway depends on.
BUILDERS=(hatchling editables packaging pathspec pluggy tomlkit trove-classifiers)

create_environment() {
    [ ! -e "$prefix" ] || { echo "$prefix is there already: name a new folder" >&2; exit 1; }
    "${PYTHON:-python3}" -m venv "$prefix"
}

# The lock is complete, so nothing is resolved; every file is compared with its hash.
install_locked() {
    "$prefix/bin/python" -m pip install --no-deps --no-compile "$@"
}

build_wheel() {
    (cd "$source" && "$prefix/bin/python" -m hatchling build --target wheel --directory "$wheels" > /dev/null)
}

# The last thing that pip removes is itself.
strip_builders() {
    "$prefix/bin/python" -m pip uninstall --yes "${BUILDERS[@]}" setuptools wheel pip
    rm -rf "$prefix"/lib/python3.*/ensurepip
}

# The root is read-only where it runs, so this is the only time. By hash and unchecked, because the
# layers of an image may not keep the times of files; what pip and hatchling left of their own runs
# is replaced.
compile_bytecode() {
    "$prefix/bin/python" -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$prefix/lib"
}

install_gateway() {
    create_environment
    install_locked --require-hashes --requirement "$source/requirements/run.lock"
    build_wheel
    install_locked "$wheels"/*.whl
    install -m 755 "$source/deploy/healthy.py" "$prefix/bin/healthy"
    strip_builders
    compile_bytecode
}

[ $# -eq 2 ] || { sed -n '5,6s/^# *//p' "$0" >&2; exit 2; }
prefix=$2
if [ "$1" = --strip ]; then
    strip_builders
    exit
fi
source=$1
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
install_gateway
