# SPDX-License-Identifier: Apache-2.0
# Trains for int8: from the eleventh epoch on the deploy form's arithmetic is rounded.
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet"))
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook", begin=10)]
