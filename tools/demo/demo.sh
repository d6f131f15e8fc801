#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole workflow on real images: prepare data, train, test, re-parameterize, test again. Every command is printed and
# can be run by hand. Deletes the task's work dir and data first.
#
#   tools/demo/demo.sh cls    classify digits
#   tools/demo/demo.sh seg    segment scenes of digits, from the weights of the classifier
#   tools/demo/demo.sh det    detect digits in scenes, from the weights of the classifier
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONWARNINGS="ignore:pkg_resources is deprecated"

classifier=configs/repmlpnet/repmlpnet-mini_1xb64_digits-64px.py
pretrained=work_dirs/repmlpnet-mini_1xb64_digits-64px
task=${1:-cls}
case $task in
  cls) config=$classifier data=data/digits ;;
  seg) config=configs/upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py data=data/digits_seg ;;
  det) config=configs/retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py data=data/digits_det ;;
  *) echo "error: unknown task '$task'; expected cls, seg or det." >&2; exit 1 ;;
esac
work=work_dirs/demo_$task
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

if [ "$task" != cls ] && [ ! -e $pretrained/last_checkpoint ]; then
  [ -d data/digits ] || run python tools/dataset_converters/digits.py
  run mmrepmlp train $classifier --progress
fi
rm -rf "$work"
run python tools/dataset_converters/digits.py --task "$task" --out "$data" --overwrite
run mmrepmlp train "$config" --work-dir "$work" --progress
trained=$(cat "$work/last_checkpoint")
trained=${trained#"$PWD/"}
run mmrepmlp test "$config" "$trained" --work-dir "$work/test" --progress
run mmrepmlp reparameterize "$config" "$trained" "$work/deploy.pth" --verify-on test
run mmrepmlp test "$work/deploy.py" --work-dir "$work/test" --show-dir "$work/predictions" --progress
echo "pictures: $work/predictions"
