#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# int8 on the digits, against float32: quantized after training, fine-tuned from the deployed network with batch norms
# after fc3, and trained with fake quantization. Prints a table of accuracy, size and latency. Deletes its work dir.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONWARNINGS="ignore:pkg_resources is deprecated"

config=configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py
recover=configs/quantization/repmlpnet-mini_insert-bn_1xb64_digits-64px.py
aware=configs/quantization/repmlpnet-mini_qat_1xb64_digits-64px.py
work=work_dirs/demo_int8
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf $work
run python tools/dataset_converters/digits.py --overwrite
run python tools/train.py $config --work-dir $work/float --progress
run python tools/deployment/export_onnx.py $config $work/float/epoch_14.pth $work/float32.onnx
run python tools/deployment/quantize.py $config $work/float/epoch_14.pth $work/after_training.onnx

run python tools/reparameterize.py $config $work/float/epoch_14.pth $work/float/deploy.pth
run python tools/train.py $recover --work-dir $work/recovered --progress --cfg-options load_from="$(echo $work/float/deploy-*.pth)"
run python tools/deployment/export_onnx.py $recover $work/recovered/epoch_4.pth $work/recovered.onnx

run python tools/train.py $aware --work-dir $work/aware --progress
run python tools/deployment/export_onnx.py $aware $work/aware/epoch_14.pth $work/quantization_aware.onnx

run python tools/analysis_tools/compare_graphs.py $config $work/{float32,after_training,recovered,quantization_aware}.onnx
