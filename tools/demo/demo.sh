#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run a whole workflow on real images. Each command is printed and can be run by hand. Deletes the task's work dir and
# data first.
#
#   tools/demo/demo.sh cls      classify digits: prepare data, train, test, re-parameterize, test again
#   tools/demo/demo.sh seg      segment digits in scenes: the same steps, starting from the classifier's weights
#   tools/demo/demo.sh det      detect digits in scenes: the same steps
#   tools/demo/demo.sh int8     compare int8 with float32 and bfloat16: quantized after training, fine-tuned from the
#                               deploy form with batch norms after fc3, and trained with fake quantization
#   tools/demo/demo.sh convs    train a slim ResNet-18, with plain convolutions or diverse branch blocks, five seeds
#   tools/demo/demo.sh prune    compress two small networks with all methods, three seeds, on all cores
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONWARNINGS="ignore:pkg_resources is deprecated"

classifier=configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py
task=${1:-cls}
work=work_dirs/demo_$task

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
write_digits() { run python tools/dataset_converters/digits.py "$@" --overwrite; }

# train_and_convert CONFIG
train_and_convert() {
  local trained
  run mmrepmlp train "$1" --work-dir "$work" --progress
  trained=$(cat "$work/last_checkpoint")
  trained=${trained#"$PWD/"}
  run mmrepmlp test "$1" "$trained" --work-dir "$work/test" --progress
  run mmrepmlp reparameterize "$1" "$trained" "$work/deploy.pth" --verify-on test
  run mmrepmlp test "$work/deploy.py" --work-dir "$work/test" --show-dir "$work/predictions" --progress
  echo "pictures: $work/predictions"
}

pretrain() {
  [ ! -e work_dirs/repmlpnet-mini_1xb64_digits-64px/last_checkpoint ] || return 0
  [ -d data/digits ] || write_digits
  run mmrepmlp train $classifier --progress
}

demo_cls() {
  write_digits
  train_and_convert $classifier
}

demo_seg() {
  pretrain
  write_digits --task seg --out data/digits_seg
  train_and_convert configs/upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py
}

demo_det() {
  pretrain
  write_digits --task det --out data/digits_det
  train_and_convert configs/retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py
}

demo_int8() {
  local recover=configs/quantization/repmlpnet-mini_insert-bn_1xb64_digits-64px.py
  local aware=configs/quantization/repmlpnet-mini_qat_1xb64_digits-64px.py
  write_digits
  run mmrepmlp train $classifier --work-dir "$work/float" --progress
  run mmrepmlp deploy $classifier "$work/float/epoch_14.pth" "$work/float32"
  run mmrepmlp deploy $classifier "$work/float/epoch_14.pth" "$work/bfloat16" --precision bfloat16
  run mmrepmlp deploy $classifier "$work/float/epoch_14.pth" "$work/after_training" --precision int8

  run mmrepmlp reparameterize $classifier "$work/float/epoch_14.pth" "$work/float/deploy.pth"
  run mmrepmlp train $recover --work-dir "$work/recovered_training" --progress \
    --cfg-options load_from="$(echo "$work"/float/deploy-*.pth)"
  run mmrepmlp deploy $recover "$work/recovered_training/epoch_4.pth" "$work/recovered" --precision int8

  run mmrepmlp train $aware --work-dir "$work/aware_training" --progress
  run mmrepmlp deploy $aware "$work/aware_training/epoch_14.pth" "$work/quantization_aware" --precision int8

  run mmrepmlp benchmark $classifier "$work"/{float32,bfloat16,after_training,recovered,quantization_aware}
}

demo_convs() {
  write_digits
  run python -m dev.compare_trainings configs/dbb/resnet18-slim_1xb64_digits-64px.py \
    configs/dbb/resnet18-slim_dbb_1xb64_digits-64px.py --work-dir "$work"
}

demo_prune() {
  write_digits --task sheets --out data/digits_sheets
  run python -m dev.compare_compressions configs/compression/repmlpnet-mini_1xb32_digits-sheets-64px.py \
    configs/compression/resnet18-slim_1xb32_digits-sheets-64px.py --work-dir "$work" --out "$work/compression.json"
}

case $task in
  cls | seg | det | int8 | convs | prune) rm -rf "$work"; "demo_$task" ;;
  *) echo "error: unknown task '$task'; expected cls, seg, det, int8, convs or prune." >&2; exit 1 ;;
esac
