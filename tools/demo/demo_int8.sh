#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# int8 on the digits, against float32 and bfloat16: quantized after training, fine-tuned from the deployed network with
# batch norms after fc3, and trained with fake quantization. Prints a table of accuracy, size and latency. Deletes its
# work dir.
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
run mmrepmlp train $config --work-dir $work/float --progress
run mmrepmlp deploy $config $work/float/epoch_14.pth $work/float32
run mmrepmlp deploy $config $work/float/epoch_14.pth $work/bfloat16 --precision bfloat16
run mmrepmlp deploy $config $work/float/epoch_14.pth $work/after_training --precision int8

run mmrepmlp reparameterize $config $work/float/epoch_14.pth $work/float/deploy.pth
run mmrepmlp train $recover --work-dir $work/recovered_training --progress --cfg-options load_from="$(echo $work/float/deploy-*.pth)"
run mmrepmlp deploy $recover $work/recovered_training/epoch_4.pth $work/recovered --precision int8

run mmrepmlp train $aware --work-dir $work/aware_training --progress
run mmrepmlp deploy $aware $work/aware_training/epoch_14.pth $work/quantization_aware --precision int8

run mmrepmlp benchmark $config $work/{float32,bfloat16,after_training,recovered,quantization_aware}
