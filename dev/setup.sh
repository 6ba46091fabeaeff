#!/usr/bin/env bash
# Make .venv with cocoseg (editable), its test tools and the GDAL binding.
#
# Run it as often as you like and from any folder: when nothing has changed it
# says nothing and takes a second or two. Set PYTHON to choose the interpreter;
# without it, that of .venv is kept, or python3 is taken.
# GDAL's library comes from the system; the binding in .venv is built for it.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/cocoseg-setup.stamp
if [ -z "${PYTHON:-}" ]; then
    # An environment that was made with another interpreter keeps it.
    PYTHON=$VENV/bin/python
    "$PYTHON" -c '' 2>/dev/null || PYTHON=python3
fi

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo; run it as root: $*"
    fi
}

# Sets python_version (3.11.7) and python_minor (3.11).
check_python() {
    command -v "$PYTHON" >/dev/null ||
        die "there is no '$PYTHON'; install Python 3.10 or newer, or set PYTHON to one"
    python_version=$("$PYTHON" -c 'import platform; print(platform.python_version())') ||
        die "'$PYTHON' does not run; set PYTHON to a Python 3.10 or newer"
    python_minor=${python_version%.*}
    [ "${python_version%%.*}" -eq 3 ] && [ "${python_minor#*.}" -ge 10 ] ||
        die "'$PYTHON' is Python $python_version; cocoseg needs 3.10 or newer, set PYTHON to one"
}

have_gdal() { command -v gdal-config >/dev/null; }

have_compiler() {
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null
}

have_python_headers() {
    "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

have_venv_module() { "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }

install_system_packages() {
    local packages=()
    have_gdal || packages+=(libgdal-dev gdal-bin)
    have_compiler || packages+=(g++)
    have_python_headers || packages+=("python$python_minor-dev")
    have_venv_module || packages+=("python$python_minor-venv")
    [ ${#packages[@]} -gt 0 ] || return 0
    # Debian's names tell what is missing, also where there is no apt.
    command -v apt-get >/dev/null ||
        die "missing: ${packages[*]} (names of Debian), and there is no apt-get;" \
            "install them, for example: conda install -c conda-forge gdal cxx-compiler"
    say "installing ${packages[*]} with apt-get"
    { as_root apt-get -qq update &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
            -o DPkg::Lock::Timeout=300 install "${packages[@]}" >/dev/null; } ||
        die "apt-get could not install ${packages[*]}; its message is above"
    have_gdal || die "gdal-config is still missing although apt-get installed ${packages[*]}"
}

# Everything that the content of .venv depends on.
fingerprint() {
    printf 'python %s\ngdal %s\nroot %s\n' "$python_version" "$gdal_version" "$PWD"
    cat requirements/*.txt setup.py pyproject.toml dev/setup.sh | cksum
}

proven() { "$VENV/bin/python" -c 'from osgeo import gdal_array'; }

up_to_date() {
    [ -f "$STAMP" ] && [ "$(fingerprint)" = "$(cat "$STAMP")" ] && proven 2>/dev/null
}

make_venv() {
    local found
    found=$("$VENV/bin/python" -c 'import pip, platform; print(platform.python_version())' \
        2>/dev/null) || found=none
    [ "$found" != "$python_version" ] || return 0
    say "making $VENV with Python $python_version"
    "$PYTHON" -m venv --clear "$VENV" || die "'$PYTHON -m venv' failed; its message is above"
}

# pip_install WHAT ARGUMENTS...
pip_install() {
    local what=$1
    shift
    say "installing $what"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "$@" ||
        die "pip could not install $what; its message is above. Mend that (network," \
            "disk space, compiler) and run dev/setup.sh again: it goes on from here"
}

have_binding() {
    "$VENV/bin/python" - "$gdal_version" 2>/dev/null <<'PYTHON'
import importlib.metadata
import sys
from osgeo import gdal_array
version = importlib.metadata.version('gdal')
sys.exit(not f'{version}.'.startswith(f'{sys.argv[1]}.'))
PYTHON
}

install_binding() {
    have_binding && return 0
    say 'the next step compiles for a minute or two'
    # The headers of the numpy in .venv come first: Debian's python3-numpy puts
    # those of an older numpy beside Python.h, where they would be found before.
    local numpy_headers
    numpy_headers=$("$VENV/bin/python" -c 'import numpy; print(numpy.get_include())')
    export CPPFLAGS="-I\"$numpy_headers\" ${CPPFLAGS:-}"
    # Without isolation, because an isolated build has no numpy and leaves
    # gdal_array out; without the cache and by force, so that a binding that was
    # built so is replaced.
    pip_install "the GDAL $gdal_version binding" \
        --no-build-isolation --no-cache-dir --force-reinstall --no-deps \
        "gdal[numpy]==$gdal_version.*"
}

check_python
have_gdal || install_system_packages
gdal_version=$(gdal-config --version) || die "'gdal-config --version' failed; mend GDAL first"
up_to_date && exit 0

install_system_packages
rm -f "$STAMP"
make_venv
pip_install 'the build tools' 'setuptools>=64' wheel
pip_install 'cocoseg and its requirements' --no-build-isolation --editable '.[tests]'
install_binding
proven || die "the GDAL binding in $VENV cannot use numpy; the error is above." \
    "Remove $VENV and run dev/setup.sh again"
fingerprint >"$STAMP"
say "ready: $PWD/$VENV"
