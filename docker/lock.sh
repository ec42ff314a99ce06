#!/bin/sh
# Resolve the images' packages anew, with uv: docker/*.lock. onnxruntime-gpu stands in the place of onnxruntime, in the
# same folder, so the image for CUDA has it alone.
set -eu
cd "$(dirname "$0")/.."

lock() {
    name=$1
    shift
    uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --output-file "docker/$name.lock" "$@"
    echo "docker/$name.lock: $(grep -c == "docker/$name.lock") packages"
}

requirements=$(mktemp)
lock cpu --upgrade pyproject.toml --extra serve
echo "onnxruntime-gpu" >"$requirements"
lock cuda --no-emit-package onnxruntime --constraint docker/cpu.lock pyproject.toml "$requirements" --extra serve --extra gpu
lock tensorrt --constraint docker/cpu.lock pyproject.toml --extra serve --extra trt-rtx
echo "hatchling" >"$requirements"
lock build --upgrade "$requirements"
rm "$requirements"
