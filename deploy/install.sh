#!/usr/bin/env bash
# Installs the gateway for production: a virtual environment with exactly the locked packages,
# compiled, and without build tools. The Dockerfile's only build step.
#
#   deploy/install.sh SOURCE PREFIX     from a folder of this repository into a new PREFIX
#   deploy/install.sh --strip PREFIX    removes pip and other build tools from an existing Python
#
# SOURCE is only read. Needs Python 3.11 or newer with venv; PYTHON names another interpreter.
set -euo pipefail
umask 022
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=2

# Locked only for building the wheel. A test compares the remaining packages with the gateway's
# dependencies.
BUILDERS=(hatchling editables packaging pathspec pluggy tomlkit trove-classifiers)

create_environment() {
    [ ! -e "$prefix" ] || { echo "$prefix exists: name a new folder" >&2; exit 1; }
    "${PYTHON:-python3}" -m venv "$prefix"
}

# The lock is complete, so nothing is resolved. Every file is checked against its hash.
install_locked() {
    "$prefix/bin/python" -m pip install --no-deps --no-compile "$@"
}

build_wheel() {
    (cd "$source" && "$prefix/bin/python" -m hatchling build --target wheel --directory "$wheels" > /dev/null)
}

# pip removes itself last.
strip_builders() {
    "$prefix/bin/python" -m pip uninstall --yes "${BUILDERS[@]}" setuptools wheel pip
    rm -rf "$prefix"/lib/python3.*/ensurepip
}

# At run time the file system is read-only, so bytecode is only written here. Unchecked hashes,
# because the layers of an image may not keep file times. Replaces the bytecode of the build itself.
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
