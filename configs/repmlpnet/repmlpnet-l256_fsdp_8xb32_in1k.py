# SPDX-License-Identifier: Apache-2.0
# Weights, gradients and optimizer state are sharded over the processes; checkpoints are those of the plain config.
_base_ = ["./repmlpnet-l256_8xb32_in1k.py"]

runner_type = "FlexibleRunner"
strategy = dict(type="mmrepmlp.ShardedStrategy", model_wrapper=dict(auto_wrap_policy="mmrepmlp.shard_units"))
# Depends on dimensions, which shards do not have; norms and biases are exempt from weight decay by layer and name.
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=None))
