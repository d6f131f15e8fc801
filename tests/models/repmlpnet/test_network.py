# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.model import initialize
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones.repmlp import RepMLPNet as MMPretrainRepMLPNet
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.repmlpnet.network import resolve_arch
from mmrepmlp.models.repmlpnet.tiling import PAD_MODES
from tests.conftest import TINY
from tests.helpers import calibrate, randomize, relative_error

GMACS = dict(T224=2.80, T256=4.25, B224=6.66, B256=9.62, D256=8.61, L256=11.58)


def build(**arguments) -> RepMLPNet:
    return RepMLPNet(TINY, **{"img_size": 64, **arguments})


def random_model(seed: int = 0, **arguments) -> RepMLPNet:
    return randomize(build(**arguments), torch.Generator().manual_seed(seed)).eval()


def head_parameters(model: RepMLPNet) -> int:
    return (model.channels[-1] + 1) * 1000


@pytest.mark.parametrize("name", GMACS)
def test_released_architectures(name, official_shapes):
    arch, img_size = name[0], int(name[1:])
    expected = official_shapes[f"RepMLPNet-{name}"]
    with torch.device("meta"):
        model, deployed = RepMLPNet(arch, img_size), RepMLPNet(arch, img_size, deploy=True).eval()
        image = torch.empty(1, 3, img_size, img_size)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters + head_parameters(model) == expected["train_params"]
    assert sum(p.numel() for p in deployed.parameters()) + head_parameters(model) < expected["deploy_params"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(image)
    assert counter.get_total_flops() / 2e9 == pytest.approx(GMACS[name], rel=0.01)


@pytest.mark.parametrize("img_size", [64, 100, (48, 33), 1])
def test_an_image_of_img_size_is_one_tile_in_every_stage(img_size):
    model = build(img_size=img_size, out_indices=(0, 1, 2, 3))
    maps = model(torch.randn(2, 3, *model.img_size))
    for stage, out in zip(model.stages, maps):
        block = stage[0].repmlp_block
        assert out.shape[2:] == (block.h, block.w) and block.fc3.in_features == block.h * block.w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("pad_mode", PAD_MODES)
def test_any_size_in_training_and_evaluation(pad_mode, deploy, dtype):
    model = build(out_indices=(0, 1, 2, 3), pad_mode=pad_mode, deploy=deploy)
    autocast = dtype is torch.bfloat16
    model = model if autocast else model.to(dtype)
    # oneDNN on processors with AMX leaves a tall bfloat16 map of a single patch column partly uninitialized.
    for height, width in ((1, 1), (1, 70), (63, 65), (130, 5 if autocast else 2)):
        x = torch.randn(2, 3, height, width, dtype=torch.float32 if autocast else dtype)
        for mode in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outs = model.train(mode)(x) if (height, width) != (1, 1) or not mode else model.eval()(x)
            sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
            assert [tuple(out.shape[2:]) for out in outs] == sizes
            assert all(out.isfinite().all() for out in outs)
    sum(out.float().sum() for out in outs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_global_perceptron_and_feed_forward_network_never_see_padding():
    model, seen = random_model(), set()
    for name, module in model.named_modules():
        if name.endswith(("repmlp_block.gp", "ffn_block")):
            module.register_forward_pre_hook(lambda _, args: seen.add(tuple(args[0].shape[2:])))
    model(torch.randn(1, 3, 70, 33))
    assert seen == {(18, 9), (9, 5), (5, 3), (3, 2)}


@pytest.mark.parametrize("deploy", [False, True])
def test_memory_format_and_batch_size_do_not_matter(deploy):
    model = RepMLPNet(dict(channels=[8, 16], depths=[1, 1], sharesets_nums=[1, 2]), 96, out_indices=(1,), deploy=deploy)
    x = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        whole = model.eval()(x)[0]
        assert relative_error(model(x.to(memory_format=torch.channels_last))[0], whole) < 1e-5
        assert relative_error(torch.cat([model(part)[0] for part in x.split(1)]), whole) < 1e-5
        assert model(x[:0])[0].shape == (0, 16, 12, 12)
        with torch.backends.mkldnn.flags(enabled=False):
            assert relative_error(model(x)[0], whole) < 1e-5
    assert relative_error(model(x)[0].detach(), whole) < 1e-5  # with gradients, where memory is not reused


def test_final_norm_belongs_to_the_last_stage_alone():
    x = torch.randn(1, 3, 64, 64)
    model = random_model(out_indices=(0, 1, 2, 3))
    without = random_model(out_indices=(0, 1, 2, 3), final_norm=False)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("final_norm")})
    with torch.no_grad():
        outs, plain = model(x), without(x)
        assert all(torch.equal(a, b) for a, b in zip(outs[:3], plain[:3]))
        assert torch.equal(outs[3], model.final_norm(plain[3]))


def test_features_and_logits_of_the_authors_code(tiny_state, tiny_outputs):
    deploy = "stages.0.0.repmlp_block.fc3_bn.weight" not in tiny_state
    model = build(out_indices=(0, 1, 2, 3), deploy=deploy).eval()
    model.load_state_dict(tiny_state)
    for form in ("as loaded", "deploy"):
        for size in ("native", "tiled"):
            with torch.no_grad():
                outs = model(tiny_outputs[f"{size}/input"])
            for stage, out in enumerate(outs[:3]):
                assert relative_error(out, tiny_outputs[f"{size}/stage{stage}"]) < 1e-5, (form, size, stage)
            logits = outs[3].mean((2, 3)) @ tiny_state["head.weight"].T + tiny_state["head.bias"]
            torch.testing.assert_close(logits, tiny_outputs[f"{size}/logits"], rtol=1e-5, atol=1e-5)
        model.switch_to_deploy()


@pytest.mark.parametrize(
    "arch, img_size",
    [
        (dict(resolve_arch("B"), depths=[1, 1, 1, 1]), 224),
        (dict(channels=[32, 64, 128], depths=[1, 2, 1], sharesets_nums=[2, 4, 8]), 48),
    ],
)
def test_mmpretrain_checkpoints_in_both_forms(arch, img_size):
    arguments = dict(arch=arch, img_size=img_size, reparam_conv_kernels=(1, 3), out_indices=(len(arch["depths"]) - 1,))
    theirs = randomize(MMPretrainRepMLPNet(**arguments), torch.Generator().manual_seed(0), spread=0.2)
    ours, deployed = RepMLPNet(**arguments).eval(), RepMLPNet(**arguments, deploy=True).eval()
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    x = torch.randn(2, 3, img_size, img_size)
    calibrate(theirs, x)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        expected = theirs(x)[0]
        assert relative_error(ours(x)[0], expected) < 1e-5
        theirs.switch_to_deploy()
        deployed.load_state_dict(theirs.state_dict(), strict=True)
        assert relative_error(deployed(x)[0], expected) < 1e-5


def saved_bytes(model: RepMLPNet, x: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass, each storage once, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)[0]
    assert out.requires_grad
    return sum(storages.values())


def test_with_cp_saves_memory():
    arch = dict(channels=[16, 32], depths=[4, 4], sharesets_nums=[2, 4])
    x = torch.randn(4, 3, 64, 64)
    plain = RepMLPNet(arch, 64, out_indices=(1,)).train()
    lean = RepMLPNet(arch, 64, out_indices=(1,), with_cp=True).train()
    assert saved_bytes(lean, x) < saved_bytes(plain, x) / 4


def test_mixed_precision_trains():
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    x, losses = torch.randn(4, 3, 64, 64), []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(x)[0].float().mean((2, 3)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


class CountCasts(TorchDispatchMode):
    """Count conversions between float32 and bfloat16 by dtype and shape of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.casts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype != args[0].dtype:
            self.casts[args[0].dtype, tuple(args[0].shape)] += 1
        return out


def test_autocast_on_a_gpu_casts_parameters_and_the_images_alone():
    model, counter = build().train(), CountCasts()
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors without data, so that no GPU is needed
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        x = torch.empty(4, 3, 64, 64, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        try:
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            with counter:
                (out,) = model(x)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", torch.float16)
            torch.clear_autocast_cache()
    assert out.dtype == torch.bfloat16
    assert {dtype for dtype, _ in counter.casts} == {torch.float32}
    cast = {shape: number for (_, shape), number in counter.casts.items()}
    assert cast.pop((4, 3, 64, 64)) == 1
    parameters = Counter(tuple(parameter.shape) for parameter in model.parameters())
    for shape, number in cast.items():
        assert sum(n for other, n in parameters.items() if math.prod(other) == math.prod(shape)) >= number, shape


# Which calls a compiler of C++, for one stage: it takes long.
@pytest.mark.slow
@pytest.mark.parametrize("deploy", [False, True])
def test_compiles_by_the_default_backend(deploy):
    model = random_model(deploy=deploy, out_indices=(0,))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        for actual, expected in zip(compiled(x), model(x), strict=True):
            assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("deploy", [False, True])
def test_large_tiles_compile_without_graph_breaks(deploy):
    model = RepMLPNet(
        TINY, 96, out_indices=(0,)
    ).eval()  # 24 by 24 pixels in the first stage, which eager mode multiplies by oneDNN
    if deploy:
        model.switch_to_deploy()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert relative_error(compiled(x)[0], model(x)[0]) < 1e-5


@pytest.mark.parametrize("deploy", [False, True])
def test_traces_and_counts_alike_with_and_without_gradients(deploy):
    model = random_model(deploy=deploy)
    x = torch.randn(1, 3, 64, 64)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            traced = torch.jit.trace(model, x)
            assert relative_error(traced(x)[0].detach(), model(x)[0].detach()) < 1e-5
            macs = get_model_complexity_info(model, (3, 64, 64), show_table=False, show_arch=False)["flops"]
            with FlopCounterMode(display=False) as counter:
                model(x)
            assert macs == pytest.approx(counter.get_total_flops() / 2, rel=0.1)  # it adds a little for norms and sums


@pytest.mark.parametrize("deploy", [False, True])
def test_learning_rates_decay_layer_by_layer(deploy):
    classifier = MMPRETRAIN_MODELS.build(
        dict(
            type="ImageClassifier",
            backbone=dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, deploy=deploy),
            head=dict(type="LinearClsHead", num_classes=5, in_channels=64),
        )
    )
    optim_wrapper = dict(
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.5),
        constructor="LearningRateDecayOptimWrapperConstructor",
    )
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        groups = build_optim_wrapper(classifier, optim_wrapper).optimizer.param_groups
    rates = {group["param_name"]: group["lr"] for group in groups}
    assert len(rates) == len(list(classifier.parameters()))
    assert rates["head.fc.weight"] == rates["backbone.final_norm.weight"] == 1
    assert rates["backbone.stages.3.0.repmlp_block.fc3.weight"] == 0.5
    assert rates["backbone.patch_embed.projection.weight"] == 0.5**6


def test_drop_path_grows_linearly_and_drops_whole_samples():
    model = build(drop_path_rate=0.4)
    rates = [getattr(unit.drop_path, "drop_prob", 0.0) for stage in model.stages for unit in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    unit = model.stages[3][0].train()
    unit.drop_path.drop_prob = 1 - 1e-7  # practically always
    x = torch.randn(3, 64, 2, 2)
    assert torch.equal(unit(x), x)
    assert not torch.equal(unit.eval()(x), x)


def test_initializers_leave_what_starts_otherwise():
    resnet = [dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"])]
    network = RepMLPNet(TINY, 64, fc3_norm_init=0.1, init_cfg=resnet)
    network.init_weights()
    norms = {name: norm.weight for name, norm in network.named_modules() if isinstance(norm, _BatchNorm)}
    assert all(weight.eq(0.1 if name.endswith("fc3_bn") else 1).all() for name, weight in norms.items())
    torch.manual_seed(0)
    merged = RepMLPNet(TINY, 64, gradient_reparam=True)
    initialize(merged, dict(type="Constant", layer="GroupedLinear", val=0.0))
    block = merged.stages[0][0].repmlp_block
    matrix = block.fc3.weight.detach().flatten(1)  # of 3x3 kernels alone: neighbours see each other, others do not
    far = torch.cartesian_prod(*[torch.arange(16)] * 2)
    far = (far[:, None] - far[None]).abs().amax(2) > 1
    assert not matrix[far].any() and matrix[~far].ne(0).all()


@pytest.mark.parametrize("widths", [[[8]], [[8], [8], [8], [8]], [[8], [8], [8, 8], [0]], [[8], [8], [8, 8.5], [8]]])
@pytest.mark.parametrize("name", ["ffn_channels", "gp_channels"])
def test_widths_are_positive_numbers_one_for_each_unit(name, widths):
    with pytest.raises(ValueError, match=f"{name}=.*: expected"):
        RepMLPNet(TINY, **{name: widths})
