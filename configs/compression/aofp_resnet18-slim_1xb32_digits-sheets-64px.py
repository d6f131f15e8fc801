# SPDX-License-Identifier: Apache-2.0
_base_ = "finetune_resnet18-slim_1xb32_digits-sheets-64px.py"

custom_hooks = [dict(type="mmrepmlp.AOFPHook", target=0.5, threshold=0.2, per_half=8, start=10)]
