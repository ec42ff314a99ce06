#!/bin/sh
# The install steps of the images, here so that docker/check.sh can run the very same. Run it in the repository's root.
#   install.sh wheel DIST                      this project's wheel, built with the tools of build.lock
#   install.sh cpu|cuda|tensorrt VENV DIST     a virtual environment with that wheel and the packages of IMAGE.lock
#   install.sh tensorrt-libraries VENV         TensorRT itself, whose package fetches it from NVIDIA when installed
set -eu

install() {
    python=$1
    shift
    "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps "$@"
}

case $1 in
wheel)
    tools=$(mktemp -d)
    "${PYTHON:-python3}" -m venv "$tools"
    install "$tools/bin/python" --require-hashes --only-binary=:all: --requirement docker/build.lock
    "$tools/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$2" .
    rm -r "$tools"
    ;;
cpu | cuda | tensorrt)
    "${PYTHON:-python3}" -m venv "$2"
    install "$2/bin/python" --require-hashes --only-binary=:all: --requirement "docker/$1.lock"
    install "$2/bin/python" "$3"/ernie_export-*.whl
    ;;
tensorrt-libraries)
    install "$2/bin/python" --requirement docker/tensorrt-libraries.txt
    ;;
*)
    echo "install.sh: expected wheel, cpu, cuda, tensorrt or tensorrt-libraries, found $1" >&2
    exit 2
    ;;
esac
