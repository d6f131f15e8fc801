# SPDX-License-Identifier: Apache-2.0
# Trains for int8: in the last ten epochs the deploy form's arithmetic is rounded.
_base_ = "../repmlpnet/repmlpnet-b224_8xb32_in1k.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet"))
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook", begin=90)]
