# SPDX-License-Identifier: Apache-2.0
_base_ = "finetune_repmlpnet-mini_1xb32_digits-sheets-64px.py"

custom_hooks = [dict(type="mmrepmlp.CSGDHook", keep=0.25, strength=500.0)]
