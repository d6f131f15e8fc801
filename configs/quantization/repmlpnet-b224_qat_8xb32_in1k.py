# SPDX-License-Identifier: Apache-2.0
# Quantization-aware training to int8, with fake quantization of the deploy form in the last ten epochs.
_base_ = "../repmlpnet/repmlpnet-b224_8xb32_in1k.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet"))
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook", begin=90)]
