#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install mmrepmlp and its dependencies, including a compiled mmcv.
#
#   tools/setup_env.sh              into the virtual environment .venv, which is created
#   VENV= tools/setup_env.sh        into the environment of $PYTHON; its torch is kept, and so are versions within the
#                                   ranges of setup.py, instead of those pinned in requirements/
#
# Variables (defaults): VENV (.venv), PYTHON (python3), TORCH (the version in requirements/torch.txt),
# XDG_CACHE_HOME (~/.cache): compiled mmcv wheels are cached in its mmrepmlp/ folder.
# Safe to interrupt and run again: a compiled mmcv is kept, an unfinished environment is recreated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV-.venv}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mmrepmlp

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
pip_install() { "$PYTHON" -m pip install --progress-bar off "$@" \
  | sed -unE 's/^(Processing|  Downloading) ([^ ]*\/)?([^ ]+).*/    \3/p; /^(Successfully|Installing)/p' | cut -c1-160; }

check_machine() {
  command -v "$PYTHON" >/dev/null || die "'$PYTHON' not found. Install Python 3.10 or newer, or set its path: make PYTHON=/path/to/python3"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || die "'$PYTHON' is $("$PYTHON" -V 2>&1); Python 3.10 or newer is needed: make PYTHON=/path/to/python3"
  [ -z "$VENV" ] || "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
    || die "'$PYTHON' cannot create virtual environments. Install its venv module (Debian, Ubuntu: apt install python3-venv)"
  local header
  header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
  [ -f "$header" ] || die "the Python headers are missing ($header). Install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
  command -v "${CXX:-g++}" >/dev/null \
    || die "the C++ compiler '${CXX:-g++}' is missing; mmcv is compiled with it. Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or set CXX=..."
}

create_venv() {
  # An interrupted pip can leave a partial package that it considers installed: recreate such an environment.
  if [ -e "$VENV/.unfinished" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    say "creating $VENV with $("$PYTHON" -V)"
    "$PYTHON" -m venv --clear "$VENV"
  fi
  touch "$VENV/.unfinished"
  PYTHON=$PWD/$VENV/bin/python
  case $VENV in /*) PYTHON=$VENV/bin/python ;; esac
}

installed_torch() { "$PYTHON" -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null; }

install_torch() {
  [ -n "$VENV" ] || TORCH=${TORCH:-$(installed_torch || true)}
  say "torch ${TORCH:-as in requirements/torch.txt}, and what compiling mmcv needs"
  pip_install -r requirements/build.txt
  if [ -n "$TORCH" ]; then
    pip_install -r requirements/build.txt "torch==$TORCH" torchvision
  else
    pip_install -r requirements/build.txt -r requirements/torch.txt
  fi
}

# Everything that an mmcv binary depends on; a cached wheel is reused only if every line is the same.
mmcv_key() {
  "$PYTHON" - "$1" <<'PY'
import os, platform, subprocess, sys, sysconfig
import torch
from torch.utils.cpp_extension import CUDA_HOME

cxx = os.environ.get("CXX", "g++")
print("mmcv", sys.argv[1])
print("python", sysconfig.get_config_var("SOABI"), sysconfig.get_platform(), *platform.libc_ver())
print("torch", torch.__version__, "cxx11abi", torch.compiled_with_cxx11_abi())
print("compiler", subprocess.check_output([cxx, "--version"], text=True).splitlines()[0])
print("cuda", torch.version.cuda if torch.cuda.is_available() else None, CUDA_HOME)
for name in ("CFLAGS", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "MMCV_CUDA_ARGS"):
    print(name, os.environ.get(name, ""))
if torch.cuda.is_available():
    print("gpu", torch.cuda.get_device_capability())
PY
}

build_mmcv() {  # build_mmcv VERSION FOLDER: write the wheel to FOLDER
  mkdir -p "$CACHE"
  find "$CACHE" -maxdepth 1 -name 'build.*' -mtime +0 -exec rm -rf {} +  # leftovers of killed builds
  build=$(mktemp -d "$CACHE/build.XXXXXX")  # global: the trap runs after this function
  trap 'rm -rf "$build"' EXIT
  # pip's own cache ignores the torch version: it could return a wheel compiled against another one.
  (
    cd "$build"
    "$PYTHON" -m pip download -q --no-deps --no-binary mmcv --no-build-isolation --no-cache-dir "mmcv==$1"
    tar xzf "mmcv-$1.tar.gz"
    if grep -q 202002L "$("$PYTHON" -c 'import torch; print(torch.__path__[0])')/include/ATen/ATen.h"; then
      sed -i 's/std=c++17/std=c++20/' "mmcv-$1/setup.py"  # this torch's headers need C++20
    fi
    : >build.log
    "$PYTHON" -m pip wheel -v --no-deps --no-build-isolation --no-cache-dir -w wheel "./mmcv-$1" >build.log 2>&1 &
    local pid=$!
    trap 'kill $pid 2>/dev/null' EXIT
    tail -f --pid=$pid -n +1 build.log | sed -unE 's|^ *\[([0-9]+/[0-9]+)\] .* -o [^ ]*/([^/ ]+)\.o .*|    mmcv \1  \2|p'
    trap - EXIT
    wait $pid || { tail -n 40 build.log >&2; die "mmcv $1 did not compile; the end of its log is above"; }
  )
  rm -rf "$2"
  mv "$build/wheel" "$2"
}

install_mmcv() {
  local version key folder
  version=$(sed -n 's/^mmcv==//p' requirements/reference.txt)
  key=$(mmcv_key "$version")
  folder=$CACHE/mmcv-$version-$(printf '%s' "$key" | sha256sum | cut -c1-16)
  if [ -e "$folder"/*.whl ]; then
    say "mmcv $version: using the compiled wheel in $folder"
  else
    say "mmcv $version: compiling for this torch (once; about 8 minutes on 2 cores)"
    build_mmcv "$version" "$folder"
    printf '%s\n' "$key" >"$folder/built-for.txt"
  fi
  pip_install --no-deps --force-reinstall "$folder"/*.whl
}

install_packages() {
  say "OpenMMLab, test tools and mmrepmlp itself"
  local pins=(-r requirements/reference.txt)
  [ -n "$VENV" ] || pins=("$(grep '^mmcv==' requirements/reference.txt)")
  pip_install "${pins[@]}" -r requirements/build.txt "torch==$(installed_torch)" --no-build-isolation \
    -e '.[cls,seg,det,dev]'
}

check_install() {
  "$PYTHON" -c 'import mmcv.ops, mmpretrain, mmseg, mmdet, mmrepmlp' \
    || die "the packages are installed but do not import together; the error above says which"
  [ -z "$VENV" ] || rm -f "$VENV/.unfinished"
  say "ready: $("$PYTHON" -c 'import torch, mmcv, mmrepmlp; print(f"mmrepmlp {mmrepmlp.__version__}, torch {torch.__version__}, mmcv {mmcv.__version__}")')"
}

export PIP_DISABLE_PIP_VERSION_CHECK=1
export CFLAGS=${CFLAGS--g0 -O1}  # a third less build time, and a wheel of 1 MB instead of 32
check_machine
[ -z "$VENV" ] || create_venv
install_torch
install_mmcv
install_packages
check_install
