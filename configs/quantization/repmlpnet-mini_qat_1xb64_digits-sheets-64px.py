# SPDX-License-Identifier: Apache-2.0
# Quantization-aware training to int8, with fake quantization of the deploy form in the last two epochs.
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-sheets-64px.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet"))
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook", begin=_base_.epochs - 2)]
