#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install mmrepmlp and its dependencies, including a compiled mmcv.
#
#   tools/setup_env.sh              create the virtual environment .venv and install into it
#   VENV= tools/setup_env.sh        install into the environment of $PYTHON; keeps its torch, and versions within the
#                                   ranges of setup.py instead of those pinned in requirements/
#
# Variables (defaults): VENV (.venv), PYTHON (python3), TORCH (the version in requirements/torch.txt),
# STACK (openmmlab; or onedl, for the packages that OneDL maintains under the same import names),
# XDG_CACHE_HOME (~/.cache): compiled mmcv wheels are cached in its mmrepmlp/ folder.
# It can be interrupted and run again: a compiled mmcv is kept, an unfinished environment is recreated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV-.venv}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-}
STACK=${STACK:-openmmlab}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mmrepmlp

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
pip_install() { "$PYTHON" -m pip install --progress-bar off "$@" \
  | sed -unE 's/^(Processing|  Downloading) ([^ ]*\/)?([^ ]+).*/    \3/p; /^(Successfully|Installing)/p' | cut -c1-160; }

check_stack() {
  MMCV=$(sed -nE 's/^((onedl-)?mmcv==.*)/\1/p' "requirements/$STACK.txt" 2>/dev/null) && [ -n "$MMCV" ] \
    || die "STACK is '$STACK'; expected openmmlab or onedl"
}

# OpenMMLab's packages and OneDL's write to the same folders, so that installing both breaks both.
check_other_stack() {
  local other='onedl-mm(cv|engine|pretrain|segmentation|detection)' found
  [ "$STACK" = openmmlab ] || other='mm(cv|engine|pretrain|segmentation|det)'
  found=$("$PYTHON" -m pip list --format freeze | sed -nE "s/^(($other|mmcv-lite)==.*)/\\1/p" | paste -sd ' ')
  [ -z "$found" ] || die "the environment has $found, and STACK is $STACK. Set STACK to match, uninstall these, or choose another VENV"
}

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
  # An interrupted pip may leave a partial package that it considers installed: recreate such an environment.
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

# While mmcv compiles, install the packages that do not depend on it.
install_mmcv() {
  say "$MMCV, and meanwhile the packages that do not depend on it"
  local built
  built=$(mktemp)
  set -m  # in a separate process group, which is ended with the script
  "$PYTHON" tools/build_mmcv.py "$MMCV" --cache "$CACHE" >"$built" &
  set +m
  # shellcheck disable=SC2064
  trap "rm -f '$built'; kill -- -$! 2>/dev/null || true" EXIT
  [ -z "$VENV" ] || pip_install -r requirements/build.txt -r requirements/reference.txt "torch==$(installed_torch)"
  wait $! || exit 1
  pip_install --no-deps --force-reinstall "$(<"$built")"
}

install_packages() {
  say "the packages of $STACK, test tools and mmrepmlp itself"
  local pins=(-r requirements/reference.txt -r "requirements/$STACK.txt") extras=cls,seg,det
  [ -n "$VENV" ] || pins=("$MMCV")
  [ "$STACK" = openmmlab ] || extras=$STACK-cls,$STACK-seg,$STACK-det
  pip_install "${pins[@]}" -r requirements/build.txt "torch==$(installed_torch)" -e ".[$extras,export,openvino,prune,docs,dev]"
}

check_install() {
  "$PYTHON" -c 'import mmcv.ops, mmpretrain, mmseg, mmdet, mmrepmlp' \
    || die "the packages are installed, but cannot be imported together; see the error above"
  [ -z "$VENV" ] || rm -f "$VENV/.unfinished"
  say "ready: $("$PYTHON" -c 'import torch, mmcv, mmrepmlp; print(f"mmrepmlp {mmrepmlp.__version__}, torch {torch.__version__}, mmcv {mmcv.__version__}")')"
}

export PIP_DISABLE_PIP_VERSION_CHECK=1
export CFLAGS=${CFLAGS--g0 -O1}  # a third less build time, and a wheel of 1 MB instead of 32
check_stack
check_machine
[ -z "$VENV" ] || create_venv
check_other_stack
install_torch
install_mmcv
install_packages
check_install
