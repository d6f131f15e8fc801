# SPDX-License-Identifier: Apache-2.0
"""Every network, convolution and block of the package through everything that all of them can do."""

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPBlock, RepMLPNetUnit, RepMLPv1Block
from mmrepmlp.models.common import GroupedLinear
from mmrepmlp.quantization import QuantizedRepMLPNet  # noqa: F401  registers it
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import convertible_modules, switch_to_deploy
from mmrepmlp.verbs.model import build_untrained
from tests.conftest import TINY
from tests.fixtures import CONFIG, DENSE_CONFIGS, ROOT
from tests.helpers import randomize, relative_error

BLOCKS = dict(RepMLPBlock=RepMLPBlock, RepMLPNetUnit=RepMLPNetUnit, RepMLPv1Block=RepMLPv1Block)


@dataclass
class Subject:
    """A model to test.

    Attributes:
        type: What it is registered as, or the name of a block.
        settings: Arguments of its constructor.
        image: Shape of an input without the batch.
        shapes: Shapes of the outputs without the batch.
        stages: Names of the stages, stem first; empty for what has no stages.
        compact: Settings that leave two stages, with layers of each kind, for what takes long over each layer.
    """

    type: str
    settings: dict
    image: tuple[int, int, int]
    shapes: list[tuple[int, int, int]]
    stages: list[tuple[str, ...]] = field(default_factory=list)
    compact: dict = field(default_factory=dict)

    def build(self, **changes) -> nn.Module:
        settings = {**self.settings, **changes}
        if self.type in BLOCKS:
            return BLOCKS[self.type](**settings)
        return MODELS.build(dict(type=f"mmrepmlp.{self.type}", **settings))

    def random(self, spread: float = 0.2, **changes) -> nn.Module:
        torch.manual_seed(0)
        return randomize(self.build(**changes), torch.Generator().manual_seed(0), spread).eval()

    def images(self, number: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(number, *self.image, generator=torch.Generator().manual_seed(1)).to(dtype)


def in_stages(names: str, count: int) -> list[tuple[str, ...]]:
    return [("stage0.",), *((names.format(i + 1),) for i in range(count))]


ALL = dict(out_indices=(0, 1, 2, 3))
REPMLPNET = dict(arch=TINY, img_size=64, **ALL)
REPMLPNET_STAGES = [("patch_embed.",), ("stages.0.",)]
REPMLPNET_STAGES += [(f"stages.{i}.", f"downsample_layers.{i - 1}.") for i in (1, 2, 3)]
TWO_STAGES = dict(arch={key: values[:2] for key, values in TINY.items()}, out_indices=(0, 1))
# Larger than one tile, in an odd number of patches.
REPMLPNET_MAPS = [(8, 18, 24), (16, 9, 12), (32, 5, 6), (64, 3, 3)]
RESNET_TWO_STAGES = dict(repmlp_stages=(1,), out_indices=(0, 1))
RESNET = dict(base_channels=8, img_size=64, h=2, w=2, reparam_conv_kernels=(1, 3), **ALL)
RESNET_MAPS = [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
REPOPT = dict(arch=dict(depths=[1, 2, 1, 1], channels=[4, 8, 8, 8]), **ALL)
REPOPT_MAPS = [(4, 17, 16), (8, 9, 8), (8, 5, 4), (8, 3, 2)]
CONV = dict(in_channels=6, out_channels=6, kernel_size=3, padding=1)
STRIDED = dict(in_channels=6, out_channels=12, kernel_size=(3, 5), stride=2, padding=(0, 1), groups=3)
V1 = dict(in_channels=8, out_channels=16, map_size=(6, 9), h=3, w=3, groups=4)
BLOCK = dict(channels=8, h=3, w=5, reparam_conv_kernels=(1, 3), num_sharesets=2)

REPMLPNETS = {
    "RepMLPNet": ("RepMLPNet", {}),
    "RepMLPNet, no local perceptron, no norm behind": (
        "RepMLPNet",
        dict(reparam_conv_kernels=None, final_norm=False, pad_mode="zeros"),
    ),
    "RepMLPNet, narrowed": (
        "RepMLPNet",
        dict(ffn_channels=[[20], [5], [96, 64], [1]], gp_channels=[[1], [5], [6, 9], [2]]),
    ),
    "RepMLPNet, gradients re-parameterized": ("RepMLPNet", dict(gradient_reparam=True)),
    "QuantizedRepMLPNet": ("QuantizedRepMLPNet", {}),
}
SUBJECTS = {
    **{
        name: Subject(kind, {**REPMLPNET, **more}, (3, 72, 96), REPMLPNET_MAPS, REPMLPNET_STAGES, TWO_STAGES)
        for name, (kind, more) in REPMLPNETS.items()
    },
    **{
        f"RepMLPResNet, {block}": Subject(
            "RepMLPResNet",
            dict(RESNET, block=block),
            (3, 64, 64),
            RESNET_MAPS,
            in_stages("stage{}.", 4),
            RESNET_TWO_STAGES,
        )
        for block in ("light", "bottleneck")
    },
    "RepOptVGG": Subject("RepOptVGG", REPOPT, (3, 67, 64), REPOPT_MAPS, in_stages("stage{}.", 4)),
    "RepOptVGG, hyper-search": Subject(
        "RepOptVGG", dict(REPOPT, form="hyper_search"), (3, 67, 64), REPOPT_MAPS, in_stages("stage{}.", 4)
    ),
    **{
        f"{kind}, {name}": Subject(kind, settings, (6, 9, 11), [shape])
        for kind in ("ACBConv2d", "DBBConv2d", "RepVGGConv2d")
        for name, settings, shape in (
            ("plain", CONV, (6, 9, 11)),
            ("strided", STRIDED, (12, 4, 5)),
            ("depthwise", dict(CONV, groups=6), (6, 9, 11)),
        )
    },
    "RepMLPBlock": Subject("RepMLPBlock", BLOCK, (8, 7, 9), [(8, 7, 9)]),
    "RepMLPNetUnit": Subject("RepMLPNetUnit", BLOCK, (8, 7, 9), [(8, 7, 9)]),
    "RepMLPv1Block": Subject("RepMLPv1Block", V1, (8, 6, 9), [(16, 6, 9)]),
    "RepMLPv1Block, one partition": Subject("RepMLPv1Block", dict(V1, map_size=3), (8, 6, 9), [(16, 6, 9)]),
}
BACKBONES = [name for name, subject in SUBJECTS.items() if subject.stages]
every_model = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
every_backbone = pytest.mark.parametrize("subject", [SUBJECTS[name] for name in BACKBONES], ids=BACKBONES)
both_forms = pytest.mark.parametrize("deploy", [False, True], ids=["training form", "deploy form"])


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """A ResNet with one block in each stage that others repeat, behind the first."""
    monkeypatch.setattr("mmrepmlp.models.repmlp_resnet.network.DEPTHS", {50: (2, 2, 2, 2)})


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    out = model(x)
    return [out] if isinstance(out, Tensor) else list(out)


def deployed(model: nn.Module) -> nn.Module:
    return switch_to_deploy(copy.deepcopy(model))


def in_form(subject: Subject, deploy: bool, **changes) -> nn.Module:
    model = subject.random(**changes)
    return switch_to_deploy(model) if deploy else model


def assert_equal_outputs(model: nn.Module, expected: list[Tensor], x: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        for actual, wanted in zip(outputs(model, x), expected, strict=True):
            assert relative_error(actual, wanted.detach()) < tolerance


def test_every_registered_model_is_here():
    kinds = {name: kind for name, kind in MODELS.module_dict.items() if inspect.isclass(kind)}
    kinds = {name: kind for name, kind in kinds.items() if not issubclass(kind, _BatchNorm)}  # not a model
    registered = {name for name, kind in kinds.items() if kind.__module__.startswith("mmrepmlp.")}
    assert {subject.type for subject in SUBJECTS.values()} - set(BLOCKS) == registered


@pytest.mark.parametrize(
    "subject", {s.type: s for s in SUBJECTS.values() if s.type not in BLOCKS}.values(), ids=lambda s: s.type
)
@pytest.mark.parametrize("scope", [None, "mmengine", "mmpretrain", "mmseg", "mmdet", "mmrepmlp"])
def test_every_registry_builds_it_in_every_scope(subject, scope):
    settings = dict(type=f"mmrepmlp.{subject.type}", **subject.settings)
    with DefaultScope.overwrite_default_scope(scope) if scope else nullcontext():
        for registry in (MMENGINE_MODELS, MMPRETRAIN_MODELS, MMSEG_MODELS, MMDET_MODELS):
            assert type(registry.build(dict(settings))) is MODELS.get(subject.type)


@every_model
@both_forms
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_outputs_have_the_shapes_that_are_documented(subject, deploy, mode):
    model = subject.build(deploy=deploy).train(mode)
    for number in (2, 0):
        assert [tuple(out.shape[1:]) for out in outputs(model, subject.images(number))] == subject.shapes
    statistics = [buffer for name, buffer in model.named_buffers() if ".running_" in name]
    assert model.deploy is deploy and bool(statistics) is not deploy
    assert all(buffer.isfinite().all() for buffer in statistics)


@every_model
@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_reaches_every_parameter(subject, deploy, dtype):
    model = in_form(subject, deploy, spread=0.1).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = sum(out.float().square().mean() for out in outputs(model, subject.images()))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@every_model
def test_conversion_is_exact_and_complete(subject):
    model = subject.random(spread=0.5).double()
    x = subject.images(dtype=torch.float64)
    expected = outputs(model, x)
    converted = deployed(model)
    assert_equal_outputs(converted, expected, x, 1e-10)
    assert_equal_outputs(converted.train(), expected, x, 1e-10)  # nothing is left that depends on the mode
    assert converted.deploy and not model.deploy and not convertible_modules(converted)
    assert not any(isinstance(module, _BatchNorm) for module in converted.modules())
    shapes = [(name, value.shape) for name, value in converted.named_parameters()]
    assert shapes == [(name, value.shape) for name, value in subject.build(deploy=True).named_parameters()]
    before = dict(converted.named_parameters())
    switch_to_deploy(converted).switch_to_deploy()
    assert all(parameter is before[name] for name, parameter in converted.named_parameters())


@every_model
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_conversion_keeps_dtype_mode_and_what_is_frozen(subject, dtype, tolerance, mode):
    model = subject.random(spread=0.1)
    x = subject.images()
    expected = outputs(model, x)
    model.to(dtype).train(mode).requires_grad_(False).switch_to_deploy()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(module.training is mode for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert_equal_outputs(model.float().eval(), expected, x, tolerance)


@every_model
def test_what_can_be_trained_can_be_trained_after_conversion(subject):
    model = subject.random()
    model.switch_to_deploy()
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_model
def test_norms_frozen_by_the_config_leave_nothing_new_to_train(subject):
    kwargs = dict(norm_cfg=dict(type="BN", requires_grad=False))
    model = subject.build(**kwargs)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.switch_to_deploy()
    after = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert after and not any(name.endswith("bias") for name in after - before)


@every_model
def test_a_conversion_that_fails_changes_nothing(subject):
    model = subject.random()
    *_, norm = (module for module in model.modules() if isinstance(module, _BatchNorm))
    norm.running_mean = norm.running_var = None
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    for convert in (model.switch_to_deploy, lambda: switch_to_deploy(nn.ModuleList([copy.deepcopy(model), model]))):
        with pytest.raises(ValueError, match="track_running_stats=False"):
            convert()
        assert not model.deploy and dict(model.named_modules()) == modules
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@every_model
@pytest.mark.parametrize(
    "prefix, counters", [("", True), ("backbone.", False)], ids=["bare", "inside of a model, without counters"]
)
def test_weights_of_the_training_form_load_into_the_deploy_form(subject, prefix, counters):
    model, x = subject.random(spread=0.5), subject.images()
    if not prefix:
        model, x = model.double(), x.double()
    state = {
        f"{prefix}{name}": value
        for name, value in model.state_dict().items()
        if counters or not name.endswith("num_batches_tracked")
    }
    again, target = subject.build().to(x), subject.build(deploy=True).to(x)
    for network in (again, target):
        whole = nn.ModuleDict(dict(backbone=network)) if prefix else network
        whole.load_state_dict(dict(state), strict=True)
    with torch.no_grad():
        expected = outputs(model, x)
    assert_equal_outputs(again.eval(), expected, x, 1e-12)
    assert_equal_outputs(target.eval(), expected, x, 1e-4 if prefix else 1e-10)
    torch.testing.assert_close(target.state_dict(), deployed(model).state_dict(), rtol=0, atol=0)
    target.load_state_dict(target.state_dict(), strict=True)  # and its own
    assert_equal_outputs(target, expected, x, 1e-4 if prefix else 1e-10)


@every_model
def test_weights_in_low_precision_are_fused_in_float32(subject):
    half = subject.random(spread=0.1).half()
    target = subject.build(deploy=True)
    target.load_state_dict(half.state_dict(), strict=True)
    expected = deployed(half.float())
    torch.testing.assert_close(target.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-6)


@every_model
@both_forms
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_every_child_is_called(subject, deploy, mode):
    model, calls = in_form(subject, deploy).train(mode), set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: calls.add(name))
    with torch.set_grad_enabled(mode):
        outputs(model, subject.images())
    uncalled = {name for name, _ in model.named_modules()} - calls
    # Lists cannot be called; an identity is what is left of a norm; quantizers have their turn with fake quantization.
    uncallable = (nn.ModuleList, nn.ModuleDict, nn.Identity)
    assert all(isinstance(model.get_submodule(n), uncallable) or n.startswith("quantizers.") for n in uncalled)


@every_model
@torch.no_grad()
def test_fusing_by_mmcv_is_exact_and_converts(subject):
    model, x = subject.random().double(), subject.images(dtype=torch.float64)
    expected = outputs(model, x)
    fused = fuse_conv_bn(copy.deepcopy(model))
    for other in (fused, deployed(fused), fuse_conv_bn(deployed(model))):
        assert_equal_outputs(other, expected, x, 1e-10)
    assert deployed(fused).deploy


@pytest.mark.parametrize(
    "path", [CONFIG, *(ROOT / "configs" / name for name in DENSE_CONFIGS.values())], ids=lambda p: Path(p).parent.name
)
@torch.no_grad()
def test_fusing_whole_models_by_mmcv_is_exact_and_converts(path):
    model = randomize(build_untrained(Config.fromfile(path)), torch.Generator().manual_seed(0), 0.2).double().eval()
    x = torch.randn(2, 3, 72, 96, dtype=torch.float64)
    expected = tree_leaves(model(x, mode="tensor"))
    fused = fuse_conv_bn(model)
    converted = deployed(fused)
    for other in (fused, converted):
        for actual, wanted in zip(tree_leaves(other(x, mode="tensor")), expected, strict=True):
            assert relative_error(actual, wanted) < 1e-10
    assert converted.backbone.deploy and not any(isinstance(module, _BatchNorm) for module in converted.modules())


class WithoutFloat64(TorchDispatchMode):
    """Of GPUs, which no longer have float64, as MPS."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            assert (tensor.device.type, tensor.dtype) != ("cuda", torch.float64), function
        return out


@pytest.mark.parametrize("name", [name for name in SUBJECTS if "RepMLPNet" not in name] + ["RepMLPNetUnit"])
def test_devices_without_float64_convert_by_the_cpu(name, monkeypatch):
    monkeypatch.setattr("mmrepmlp.reparam.fuse.WITH_FLOAT64", ("cpu", "meta"))
    with FakeTensorMode(allow_non_fake_inputs=True), WithoutFloat64():
        with torch.device("cuda"):
            model = SUBJECTS[name].build()
        model.switch_to_deploy()
        kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    assert model.deploy and kinds == {("cuda", torch.float32)}


WRAPPERS = dict(
    weight_norm=weight_norm,
    spectral_norm=spectral_norm,
    parametrized_weight_norm=parametrizations.weight_norm,
    parametrized_spectral_norm=parametrizations.spectral_norm,
    pruned=lambda layer: prune.l1_unstructured(prune.random_unstructured(layer, "weight", 0.5), "weight", 0.5),
)


@every_model
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@torch.no_grad()
def test_weights_that_torch_computes_are_converted(subject, wrap):
    model, x = subject.random(spread=0.1).double(), subject.images(dtype=torch.float64)
    for layer in (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, GroupedLinear))):
        wrap(layer).requires_grad_(False)
    outputs(model.train(), x)  # of which spectral norms learn
    expected = outputs(model.eval(), x)
    converted = deployed(model.train())
    assert converted.state_dict().keys() == subject.build(deploy=True).state_dict().keys()
    assert all(module.training for module in model.modules())
    assert_equal_outputs(converted.eval(), expected, x, 1e-10)
    assert_equal_outputs(model.eval(), expected, x, 1e-15)  # the copy took nothing from it
    with pytest.raises(ValueError, match=r"from which weight_norm, spectral_norm or pruning .* prune.remove"):
        subject.build(deploy=True).load_state_dict(model.state_dict(), strict=False)


@every_model
@torch.no_grad()
def test_averaged_weights_convert(subject):
    average = ExponentialMovingAverage(model := subject.random().double(), momentum=0.5, update_buffers=True)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    average.update_parameters(model)
    average.update_parameters(model)
    x = subject.images(dtype=torch.float64)
    expected = outputs(average, x)
    switch_to_deploy(average)
    assert average.module.deploy
    assert_equal_outputs(average, expected, x, 1e-10)


@every_model
@both_forms
def test_copies_are_independent(subject, deploy):
    model, x = in_form(subject, deploy), subject.images()
    expected = outputs(model, x)
    twin = copy.deepcopy(model)
    twin.switch_to_deploy()
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(outputs(model, x), expected, strict=True))


@every_model
@both_forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_and_autocast(subject, deploy, dtype):
    model, x = in_form(subject, deploy, spread=0.1), subject.images()
    expected = outputs(model, x)
    with torch.autocast("cpu", dtype):
        assert_equal_outputs(model, expected, x, 0.1)
    low = outputs(model.to(dtype), x.to(dtype))
    assert all(out.dtype == dtype and relative_error(out, wanted) < 0.1 for out, wanted in zip(low, expected))


@every_model
def test_batch_norms_of_several_processes(subject):
    model, plain = subject.build(norm_cfg=dict(type="SyncBN")), subject.build(norm_cfg=dict(type="BN"))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    plain.load_state_dict(model.state_dict())
    x = subject.images()
    for mode in (True, False):
        for actual, expected in zip(outputs(model.train(mode), x), outputs(plain.train(mode), x)):
            torch.testing.assert_close(actual, expected)
    expected = outputs(model, x)
    assert_equal_outputs(deployed(model), expected, x, 1e-4)


@every_backbone
@both_forms
@pytest.mark.parametrize("frozen", range(-1, 5))
def test_frozen_stages_stay_as_they_are(subject, deploy, frozen):
    model = in_form(subject, deploy, frozen_stages=frozen).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs(model, subject.images())
    names = tuple(name for stage in subject.stages[: frozen + 1] for name in stage)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(names), name
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(buffer, before[name]) == name.startswith(names), name
    model.switch_to_deploy()
    for name, parameter in model.train().named_parameters():
        assert parameter.requires_grad != name.startswith(names), name


@every_backbone
def test_norm_eval(subject):
    model = subject.random(norm_eval=True).train()
    assert model.training and not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs(model, subject.images())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("subject", [SUBJECTS[n] for n in BACKBONES if "Quantized" not in n], ids=lambda s: s.type)
def test_recomputing_changes_nothing(subject):
    x, models = subject.images(dtype=torch.float64), []
    for with_cp in (False, True):
        models.append(subject.random(with_cp=with_cp).double().train())
        sum(out.square().mean() for out in outputs(models[-1], x)).backward()
    theirs, buffers = dict(models[1].named_parameters()), dict(models[1].named_buffers())
    for name, parameter in models[0].named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(dict(models[0].named_buffers()), buffers, rtol=0, atol=0)


@every_backbone
def test_layers_are_counted_from_the_stem_to_the_head(subject):
    model = subject.build()
    depth = {name: model.get_layer_depth(f"backbone.{name}", "backbone.") for name, _ in model.named_parameters()}
    blocks = sum(len(stage) for stage in model.stages)
    assert {total for _, total in depth.values()} == {blocks + 2}
    for index, names in enumerate(subject.stages):
        first = sum(len(stage) for stage in model.stages[: index - 1]) + 1 if index else 0
        last = first + len(model.stages[index - 1]) - 1 if index else 0
        found = {layer for name, (layer, _) in depth.items() if name.startswith(names)}
        assert found == set(range(first, last + 1))
    assert model.get_layer_depth("head.fc.weight", "backbone.") == (blocks + 1, blocks + 2)


def traced(model: nn.Module, x: Tensor) -> Callable:
    return torch.jit.trace(model, x, check_trace=False)


def compiled(model: nn.Module, x: Tensor) -> Callable:
    torch.compiler.reset()  # its limit of recompilations counts over all models of a class
    torch._dynamo.mark_dynamic(x, 0)  # a graph for one number of images alone is an error
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@every_model
@both_forms
@pytest.mark.parametrize("record", [traced, pytest.param(compiled, marks=pytest.mark.slow)])
@torch.no_grad()
def test_what_is_recorded_computes_the_same(subject, deploy, record):
    model, x = in_form(subject, deploy, **subject.compact), subject.images(2)
    recorded = record(model, x)
    assert_equal_outputs(recorded, outputs(model, x), x, 1e-5)
    x = subject.images(4)
    assert_equal_outputs(recorded, outputs(model, x), x, 1e-5)


@every_model
@torch.no_grad()
def test_the_memory_saver_for_frozen_norms(subject):
    model, x = subject.random(), subject.images()
    expected = outputs(model, x)
    try:
        turn_on_efficient_conv_bn_eval_for_single_model(model)
    except MMRepMLPError as error:
        assert (
            "cannot be traced by torch.fx" in str(error) and subject.type != "RepOptVGG"
        ) or "form" in subject.settings
    else:
        assert_equal_outputs(model, expected, x, 1e-5)
        for convert in (switch_to_deploy, lambda model: model.switch_to_deploy()):
            convert(converted := copy.deepcopy(model))
            assert "forward" not in vars(converted)
            assert_equal_outputs(converted, expected, x, 1e-5)
