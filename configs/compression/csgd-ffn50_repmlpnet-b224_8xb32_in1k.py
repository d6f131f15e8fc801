# SPDX-License-Identifier: Apache-2.0
# C-SGD: keep half of the hidden channels of a trained RepMLPNet-B's feed-forward networks. Not run here.
_base_ = ["../repmlpnet/repmlpnet-b224_8xb32_in1k.py"]

load_from = "RepMLPNet-B224_train.pth"
custom_hooks = [dict(type="mmrepmlp.CSGDHook", keep=0.5, strength=10.0, layers=["ffn_fc1"])]
optim_wrapper = dict(optimizer=dict(lr=1e-4))
