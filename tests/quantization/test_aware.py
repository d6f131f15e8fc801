# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from torch.ao.quantization import FakeQuantize

from mmrepmlp.export import ExportError, OnnxNetwork, export_onnx
from mmrepmlp.quantization import QuantizedRepMLPNet
from mmrepmlp.quantization.aware import key_of, quantizable_layers
from tests.conftest import SHALLOW
from tests.export.conftest import random_network
from tests.helpers import relative_error


def images(seed, number=4):
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def plain():
    return random_network()


def quantized(plain, **settings):
    """In training form, with fake quantization on and ranges that two batches have shown."""
    network = QuantizedRepMLPNet(SHALLOW, img_size=64, **settings)
    network.load_state_dict(plain.state_dict())
    network.enable_fake_quantization()
    with torch.no_grad():
        for seed in (1, 2):
            network.train()(images(seed))
    return network.eval()


@pytest.fixture
def network(plain):
    return quantized(plain)


def steps_of(weight):
    return weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127


@torch.no_grad()
def reference(plain, quantizers, x):
    """The deploy form with weights and inputs rounded by hand."""
    deployed = copy.deepcopy(plain)
    deployed.switch_to_deploy()

    def round_input(name):
        scale, zero = quantizers[key_of(name)].scale, quantizers[key_of(name)].zero_point
        return lambda _, inputs: (((inputs[0] * (1 / scale)).round() + zero).clamp(0, 255) - zero) * scale

    for name, layer in quantizable_layers(deployed).items():
        step = steps_of(layer.weight)
        layer.weight.copy_((layer.weight * (1 / step)).round() * step)
        layer.register_forward_pre_hook(round_input(name))
    return deployed(x)[0]


def test_without_fake_quantization_it_is_the_plain_network(plain):
    network = QuantizedRepMLPNet(SHALLOW, img_size=64).eval()
    network.load_state_dict(plain.state_dict())
    assert torch.equal(network(images(3))[0], plain(images(3))[0])
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_computes_the_rounded_deploy_form(plain, network):
    # In float32 and step by step as torch rounds: elsewhere ties fall to other sides.
    assert relative_error(network(images(3))[0], reference(plain, network.quantizers, images(3))) < 1e-5
    assert relative_error(network(images(3))[0], plain(images(3))[0]) > 1e-3


def test_ranges_follow_training_and_stay_in_evaluation(network):
    before = copy.deepcopy(network.quantizers.state_dict())
    network(images(3) * 5)
    assert all(torch.equal(value, before[name]) for name, value in network.quantizers.state_dict().items())
    statistics = {name: value.clone() for name, value in network.named_buffers() if ".running_" in name}
    network.train()(images(3) * 5)
    assert not torch.equal(network.quantizers["patch_embed-projection"].scale, before["patch_embed-projection.scale"])
    assert all(torch.equal(value, network.get_buffer(name)) for name, value in statistics.items())


def test_gradients_reach_every_parameter_and_lead_downhill(network):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    target, losses = torch.zeros_like(network(images(4))[0]), []
    for _ in range(8):
        loss = (network(images(4))[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deploy_form_is_the_same_network_with_weights_on_the_grid(network, dtype):
    network = network.to(dtype)
    deployed = copy.deepcopy(network)
    deployed.switch_to_deploy()
    deployed.switch_to_deploy()
    assert deployed.deploy and torch.equal(deployed(images(3).to(dtype))[0], network(images(3).to(dtype))[0])
    for layer in quantizable_layers(deployed).values():
        levels = layer.weight / steps_of(layer.weight)
        assert (levels - levels.round()).abs().max() < 1e-4 and levels.round().abs().amax() == 127


@pytest.mark.parametrize("deploy", [False, True])
def test_checkpoints_load_in_either_form_and_remember_the_ranges(network, deploy):
    loaded = QuantizedRepMLPNet(SHALLOW, img_size=64, deploy=deploy).eval()
    loaded.load_state_dict(network.state_dict())
    assert loaded.fake_quantization and torch.equal(loaded(images(3))[0], network(images(3))[0])
    again = QuantizedRepMLPNet(SHALLOW, img_size=64, deploy=deploy).eval()
    again.load_state_dict(loaded.state_dict())
    assert torch.equal(again(images(3))[0], network(images(3))[0])


def test_a_deployed_network_that_is_trained_further_stays_rounded(network):
    network.switch_to_deploy()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    loaded = QuantizedRepMLPNet(SHALLOW, img_size=64, deploy=True).eval()
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(network(images(3))[0], loaded(images(3))[0])
    layers = [quantizable_layers(n)["stages.0.0.repmlp_block.fc3"] for n in (network, loaded)]
    assert relative_error(layers[1].weight, layers[0].weight) > 1e-4  # only what is loaded lies on the grid


@pytest.mark.slow
def test_export_reads_the_present_ranges_without_a_pass_before(tmp_path):
    network = quantized(random_network(out_indices=(0,)), out_indices=(0,)).train()
    for factor in (1, 5):  # trained, exported, trained further to wider ranges, exported
        with torch.no_grad():
            network(factor * images(6))
        deployed = copy.deepcopy(network)
        deployed.switch_to_deploy()
        report = export_onnx(deployed, tmp_path / f"{factor}.onnx", size=(64, 64), dynamic=())
        scales = [to_array(t).item() for t in onnx.load(str(report.path)).graph.initializer if not t.dims]
        for quantizer in network.quantizers.values():
            assert any(scale == pytest.approx(quantizer.scale.item(), rel=1e-6) for scale in scales)
        with torch.no_grad():
            expected = copy.deepcopy(network).eval()(images(5))[0]
        assert relative_error(OnnxNetwork(report.path)(images(5))[0], expected) < 1e-2
        assert all(isinstance(quantizer, FakeQuantize) for quantizer in deployed.quantizers.values())


def test_the_skeleton_holds_no_weights_and_follows_the_network(network):
    before = network(images(3))[0]
    assert all(parameter.is_meta for parameter in network.skeleton.parameters())
    assert not any("skeleton" in name for name in [*network.state_dict(), *dict(network.named_modules())])
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(network(images(3))[0], before) and not twin(images(3))[0].any()
    assert network.train().deploy_skeleton().training and not network.eval().deploy_skeleton().training


def test_recomputing_is_refused():
    with pytest.raises(ValueError, match="with_cp"):
        QuantizedRepMLPNet(SHALLOW, img_size=64, with_cp=True)


@pytest.mark.slow
def test_export_stores_every_weight_as_the_int8_that_it_is(network, tmp_path):
    report = export_onnx(network, tmp_path / "int8.onnx", size=(64, 64), dynamic=())
    deployed = copy.deepcopy(network)
    deployed.switch_to_deploy()
    graph = onnx.load(str(report.path)).graph
    values = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith("_int8")]
    layers = quantizable_layers(deployed).values()
    assert len(weights) == len(layers) == 24 == report.operators["QuantizeLinear"]
    stored = []
    for node in weights:
        levels, steps, zeros = (values[name] for name in node.input)
        assert levels.dtype == zeros.dtype == np.int8 and len(steps) == len(zeros) == len(levels) and not zeros.any()
        stored.append((levels.astype(np.float32) * steps.reshape(-1, *[1] * (levels.ndim - 1))).ravel())
    for layer in layers:
        weight = layer.weight.detach().numpy().ravel()
        assert any(len(s) == len(weight) and np.allclose(s, weight, rtol=1e-6, atol=0) for s in stored)
    assert not [n for n, value in values.items() if value.dtype == np.float32 and value.ndim > 1 and value.size > 1000]
    with pytest.raises(ExportError, match="only be exported or compiled in deploy form"):
        export_onnx(network, tmp_path / "training.onnx", size=(64, 64), deploy=False)
    # What fake quantization showed is what ONNX Runtime computes; a tie of rounding may move a value by a step.
    with torch.no_grad():
        assert relative_error(OnnxNetwork(report.path)(images(5))[0], network(images(5))[0]) < 1e-2
    assert max(report.errors.values()) < 1e-2
