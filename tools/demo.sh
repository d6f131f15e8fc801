#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job on real images: convert, train, test, re-parameterize, test again, compare. Every command is one that
# you can type yourself. Starts clean: work_dirs/demo and data/digits are made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONWARNINGS="ignore:pkg_resources is deprecated"

config=configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py
work=work_dirs/demo
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf "$work"
run python tools/dataset_converters/digits.py --out data/digits --overwrite
run python tools/train.py "$config" --work-dir "$work"
trained=$(cat "$work/last_checkpoint")
trained=${trained#"$PWD/"}
run python tools/test.py "$config" "$trained" --work-dir "$work/test" --out "$work/training_form.pkl"
run python tools/reparameterize.py "$config" "$trained" "$work/deploy.pth"
run python tools/test.py "$work/deploy.py" "$work/deploy.pth" --work-dir "$work/test" --out "$work/deploy_form.pkl"
run python tools/analysis_tools/compare_forms.py --configs "$config" "$work/deploy.py" \
  --checkpoints "$trained" "$work/deploy.pth" --predictions "$work/training_form.pkl" "$work/deploy_form.pkl"
