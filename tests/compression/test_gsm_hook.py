# SPDX-License-Identifier: Apache-2.0
"""GSM against its rule, weight by weight."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch.optim import SGD

from mmrepmlp.compression import CompressionError, GSMHook
from mmrepmlp.compression.gradient_hook import refuse_split_weights
from mmrepmlp.compression.gsm_hook import cut_smallest, sparse_weights
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import switch_to_deploy
from tests.compression.toy import ToyClassifier, runner, step

# Over 20 epochs of 4 steps the sum of lr * weight_decay / (1 - momentum) is 80 * 0.05 * 1.2 / 0.5 = 9.6.
LAYERS = ["conv1", "conv2", "fc"]
OPTIMIZER = dict(type="SGD", lr=0.1, momentum=0.5, weight_decay=1.2)


def test_every_weight_follows_the_rule_and_exactly_as_many_gradients_count_as_are_asked_for():
    torch.manual_seed(0)
    model, lr, momentum, decay, share = ToyClassifier().double().train(), 0.02, 0.9, 1e-3, 0.13
    weights = sparse_weights(model, None)
    assert list(weights) == ["conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"]
    expected = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    buffers = {name: np.zeros_like(value) for name, value in expected.items()}
    optimizer, hook = SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay), GSMHook(share)
    hook.weights = weights
    optimizer.register_step_pre_hook(hook.enter_step)
    number = sum(weight.numel() for weight in weights.values())
    for index in range(60):
        gradients = {name: value.numpy() for name, value in step(model, optimizer, index).items()}
        scores = np.concatenate([np.abs(gradients[name] * expected[name]).ravel() for name in weights])
        threshold = np.sort(scores)[-int(share * number)]
        for name, gradient in gradients.items():
            if name in weights:
                gradient = np.where(np.abs(gradient * expected[name]) >= threshold, gradient, 0)
                assert np.array_equal(model.get_parameter(name).grad.numpy() != 0, gradient != 0)
            buffers[name] = momentum * buffers[name] + gradient + decay * expected[name]
            expected[name] = expected[name] - lr * buffers[name]
        assert sum(int((weight.grad != 0).sum()) for weight in weights.values()) == int(share * number)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-11, atol=1e-13)


def test_ties_are_cut_to_the_share():
    weights = [torch.nn.Parameter(torch.ones(4, 5)), torch.nn.Parameter(2 * torch.ones(2, 10))]
    cut_smallest(weights, 0.75)
    assert int((weights[0] != 0).sum()) == 0 and int((weights[1] != 0).sum()) == 10


def test_a_training_ends_in_a_sparse_checkpoint(tmp_path):
    hook = dict(type="mmrepmlp.GSMHook", nonzero=0.3, layers=LAYERS)
    run = runner(tmp_path, hook, optimizer=OPTIMIZER)
    run.train()
    dense, sparse = (torch.load(tmp_path / name, weights_only=False) for name in ("epoch_20.pth", "sparse.pth"))
    assert "optimizer" in dense and "optimizer" not in sparse
    before, after = dense["state_dict"], sparse["state_dict"]
    names = [f"{layer}.weight" for layer in LAYERS]
    old, new = (torch.cat([state[name].flatten() for name in names]) for state in (before, after))
    zero = new == 0
    assert int(zero.sum()) == int(0.7 * len(new)) and torch.equal(new[~zero], old[~zero])
    assert old[zero].abs().max() <= old[~zero].abs().min()
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name not in names)


def test_zeros_of_fc3_survive_conversion_where_gradients_are_reparameterized():
    settings = dict(arch=dict(channels=[8], depths=[2], sharesets_nums=[4]), img_size=16, out_indices=(0,))
    network = MODELS.build(dict(type="mmrepmlp.RepMLPNet", gradient_reparam=True, **settings)).eval()
    weights = sparse_weights(network, ["fc3"])
    assert list(weights) == [f"stages.0.{i}.repmlp_block.fc3.weight" for i in (0, 1)]
    cut_smallest(list(weights.values()), 0.9)
    zeros = {name: weight == 0 for name, weight in weights.items()}
    switch_to_deploy(network)
    assert all(torch.equal(network.get_parameter(name) == 0, zero) for name, zero in zeros.items())


def test_a_schedule_that_leaves_weights_large_is_refused(tmp_path):
    run = runner(tmp_path, dict(type="mmrepmlp.GSMHook"), optimizer=dict(OPTIMIZER, weight_decay=0.5))
    with pytest.raises(CompressionError, match=r"conv1.weight without a gradient .* e\^4.\d*, .* e\^8"):
        run.train()


def test_wrong_arguments():
    for share in (0, 1):
        with pytest.raises(ValueError, match="nonzero"):
            GSMHook(share)
    with pytest.raises(CompressionError, match="'conv9' has no weights that are trained. Expected some of conv1"):
        sparse_weights(ToyClassifier(), ["conv9"])


@pytest.mark.parametrize("kind, refused", [("AdamW", True), ("SGD", False)])
def test_weights_that_an_optimizer_takes_apart_are_refused(kind, refused):
    settings = dict(arch=dict(channels=[8], depths=[1], sharesets_nums=[4]), img_size=16, out_indices=(0,))
    network = MODELS.build(dict(type="mmrepmlp.RepMLPNet", gradient_reparam=True, **settings))
    optimizer = build_optim_wrapper(
        network, dict(optimizer=dict(type=kind, lr=0.1), constructor="mmrepmlp.RepOptimizerConstructor")
    ).optimizer
    refuse_split_weights(optimizer, sparse_weights(network, ["ffn_fc1"]).values())
    with pytest.raises(CompressionError, match="fc3.weight stands for") if refused else nullcontext():
        refuse_split_weights(optimizer, sparse_weights(network, ["fc3"]).values())
