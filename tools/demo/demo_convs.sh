#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A slim ResNet-18 with plain convolutions and with diverse branch blocks, each trained on the digits with five seeds.
# Prints a table of accuracy, and of size and speed in both forms. Deletes its work dir.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONWARNINGS="ignore:pkg_resources is deprecated"

work=work_dirs/demo_convs
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf $work
run python tools/dataset_converters/digits.py --overwrite
run python -m dev.compare_trainings configs/dbb/resnet18-slim_1xb64_digits-64px.py \
  configs/dbb/resnet18-slim_dbb_1xb64_digits-64px.py --work-dir $work
