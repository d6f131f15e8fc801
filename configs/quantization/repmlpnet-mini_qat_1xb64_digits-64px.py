# SPDX-License-Identifier: Apache-2.0
# Quantization-aware training to int8, with fake quantization of the deploy form from the eleventh epoch on.
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet"))
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook", begin=10)]
