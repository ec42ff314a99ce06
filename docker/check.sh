#!/bin/sh
# What can be checked of the images where no container engine builds them:
#   docker/check.sh BUNDLE [IMAGE...]     IMAGE: cpu (the default), cuda, tensorrt
# Each image's install steps are run as the Dockerfile runs them, in a clean virtual environment; what they installed is
# compared with the lock; and the installed server answers for BUNDLE, started as the image starts it: with a key, and,
# where this is run by root, as user 10001 on a read-only root. At the end stands what all this leaves unproven.
# PYTHON: the Python to use; one that user 10001 may run, for the last of these.
set -eu
cd "$(dirname "$0")/.."
bundle=$(realpath "${1:?usage: docker/check.sh BUNDLE [cpu|cuda|tensorrt]...}")
shift
[ $# -gt 0 ] || set -- cpu

work=$(mktemp -d /var/tmp/docker-check.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cp docker/Dockerfile docker/answer.py "$work"
printf 'a-key-for-this-check-alone\n' >"$work/api_keys"

answer() { # as the image does where that can be had, else plainly
    if [ "$(id -u)" = 0 ] && unshare --mount true 2>/dev/null; then
        # shellcheck disable=SC2016
        unshare --mount sh -c 'mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp && exec setpriv \
            --reuid=10001 --regid=10001 --clear-groups --no-new-privs --bounding-set=-all "$@"' - "$@"
    else
        "$@"
    fi
}

docker/install.sh wheel "$work/dist"
for image in "$@"; do
    began=$(date +%s)
    docker/install.sh "$image" "$work/$image" "$work/dist"
    sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' "docker/$image.lock" | tr '[:upper:]_' '[:lower:]-' | sort >"$work/locked"
    "$work/$image/bin/python" -m pip list --format=freeze --exclude pip --exclude setuptools --exclude ernie-export |
        tr '[:upper:]_' '[:lower:]-' | sort >"$work/found"
    diff "$work/locked" "$work/found"
    echo "$image: $(wc -l <"$work/found") packages as locked, $(du -sm "$work/$image" | cut -f1) MiB," \
        "$(($(date +%s) - began)) s"
    answer "$work/$image/bin/python" "$work/answer.py" "$image" "$bundle" "$work/api_keys"
    if [ "$image" = tensorrt ]; then
        docker/install.sh tensorrt-libraries "$work/$image" >"$work/log" 2>&1 &&
            echo "tensorrt: TensorRT's own libraries installed" ||
            echo "tensorrt: TensorRT's own libraries could not be had here: that step is unproven"
    fi
done

cat <<'END'
Unproven by this: that a container engine builds and runs docker/Dockerfile and compose.yaml; the base image, of which
the version is pinned but no digest, with its Python 3.11.14 and its Debian; the engine's own health checks, secrets and
GPU devices; and, of cuda and tensorrt, all that needs a GPU or its driver.
END
