#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What precisions cost in accuracy: sheets of digits (classification) and scenes (segmentation, detection), each network
# trained in float and for int8, and deployed in float32, bfloat16 and int8. Writes docs/results/precisions.json. Takes
# about an hour on two CPU cores; what is in work_dirs already is not trained again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONWARNINGS="ignore:pkg_resources is deprecated"

work=work_dirs/demo_accuracy
folders=()
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

train() { # CONFIG
  folder=work_dirs/$(basename "$1" .py)
  [ -e "$folder/last_checkpoint" ] || run mmrepmlp train "$1" --progress
  trained=$(cat "$folder/last_checkpoint")
  trained=${trained#"$PWD/"}
}

deploy() { # CONFIG FOLDER PRECISION
  [ -e "$2/deploy.json" ] || run mmrepmlp deploy "$1" "$trained" "$2" --precision "$3" --verify-on test
  folders+=("$2")
}

measure() { # NAME CONFIG CONFIG_TRAINED_FOR_INT8
  train "configs/$2"
  for precision in float32 bfloat16 int8; do deploy "configs/$2" "$work/$1_$precision" $precision; done
  train "configs/quantization/$3"
  deploy "configs/quantization/$3" "$work/$1_trained_for_int8" int8
}

for task in cls sheets seg det; do
  data=data/digits_$task
  [ -d "${data%_cls}" ] || run python tools/dataset_converters/digits.py --task $task
done
train configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py # segmentor and detector start from its weights
measure sheets repmlpnet/repmlpnet-mini_1xb64_digits-sheets-64px.py repmlpnet-mini_qat_1xb64_digits-sheets-64px.py
measure scenes upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py \
  upernet_repmlpnet-mini_qat_1xb16-150_digits-120x152.py
measure boxes retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py retinanet_repmlpnet-mini_qat_fpn_digits-120x152.py
run mmrepmlp benchmark "${folders[@]}" --json docs/results/precisions.json
