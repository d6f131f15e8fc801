#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures on a GPU, in at most ten minutes, in an environment with torch, mmengine, mmcv and mmpretrain. Writes
# gpu_*.json into a folder (default: docs/results).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec timeout 600 "${PYTHON:-python}" -m dev.gpu --out "${1:-docs/results}"
