# SPDX-License-Identifier: Apache-2.0
"""ResRep: compactors, their gradients and masks, and what is left of them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmrepmlp.compression import CompressionError, ResRep, ResRepHook, find_groups
from mmrepmlp.compression.compactor import Compactor, add_compactor, compactors_in, remove_compactors
from mmrepmlp.compression.compress import compress
from mmrepmlp.compression.macs import MacsOfWidths
from mmrepmlp.compression.resrep import compactor_gradient, norm_at_end
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.model import call_model, random_images
from tests.compression.test_groups import MODELS_AND_LAYERS, build
from tests.compression.toy import ToyClassifier, runner
from tests.helpers import relative_error

TOY = dict(type="mmrepmlp.ResRep", model=dict(type="ToyClassifier"))
# A training of seconds: the penalty and its learning rate are large for what the papers' have weeks for.
SHORT = dict(type="mmrepmlp.ResRepHook", target=0.5, lr=0.1, lasso=1e-2, momentum=0.9, start=40, interval=10, step=2)


def mixed(model: nn.Module) -> nn.Module:
    """Let compactors mix channels, and half of their rows be zero."""
    generator = torch.Generator().manual_seed(2)
    for compactor in compactors_in(model).values():
        noise = torch.randn(compactor.weight.shape, generator=generator, dtype=torch.float64)
        compactor.weight.data += 0.1 * noise.to(compactor.weight)
        gone = torch.randperm(len(compactor.mask), generator=generator)[: len(compactor.mask) // 2]
        compactor.weight.data[gone] = 0
    return model


@pytest.mark.parametrize("cfg, scope, layers", MODELS_AND_LAYERS.values(), ids=MODELS_AND_LAYERS)
def test_compactors_start_as_nothing_keep_names_and_are_fused_exactly(cfg, scope, layers):
    plain, model = build(cfg, scope), build(dict(type="mmrepmlp.ResRep", model=cfg), scope)
    assert len(compactors_in(model)) == len(layers) and type(model) is type(plain)
    model.load_state_dict(plain.state_dict(), strict=True)  # any checkpoint of the model starts a training
    images = random_images(model, 2)
    with torch.no_grad():
        assert relative_error(call_model(model, images)[1], call_model(plain, images)[1]) < 1e-14
        expected = call_model(mixed(model), images)[1]
        assert relative_error(call_model(plain, images)[1], expected) > 1e-3
        assert relative_error(call_model(switch_to_deploy(copy.deepcopy(model)), images)[1], expected) < 1e-10
    compressed = compress(model, {})
    assert not compactors_in(compressed.model)
    with torch.no_grad():
        for form in (compressed.finished, compressed.model, switch_to_deploy(copy.deepcopy(compressed.model))):
            assert relative_error(call_model(form, images)[1], expected) < 1e-10
    for name, group in compressed.groups.items():
        assert len(compressed.model.get_submodule(name).weight) == group.channels - group.channels // 2
    remove_compactors(model)
    assert model.state_dict().keys() == plain.state_dict().keys() and not compress(plain, {})


@pytest.mark.parametrize(
    "layer, shape", [(nn.Conv2d(3, 5, 3), (2, 3, 6, 6)), (nn.Linear(3, 5), (2, 3)), (nn.BatchNorm2d(5), (2, 5, 4, 4))]
)
def test_a_compactor_is_a_product_behind_a_layer(layer, shape):
    x, plain = torch.randn(shape), copy.deepcopy(layer)
    add_compactor(layer, 5)
    layer.compactor.weight.data = torch.randn(5, 5, 1, 1)
    expected = torch.einsum("oi,ni...->no...", layer.compactor.weight.flatten(1), plain(x))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(layer, type(plain)) and set(plain.state_dict()) < set(copy.deepcopy(layer).state_dict())


def reference_gradient(weight: Tensor, mask: Tensor, gradient: Tensor, lasso: float) -> Tensor:
    """Row by row, as the paper has it."""
    rows = []
    for row, keep, own in zip(weight.flatten(1).tolist(), mask.tolist(), gradient.flatten(1).tolist()):
        norm = sum(value * value for value in row) ** 0.5
        rows.append([keep * g + (lasso * value / norm if norm else 0.0) for value, g in zip(row, own)])
    return torch.tensor(rows, dtype=weight.dtype)[..., None, None]


def test_gradients_of_rows():
    compactor = Compactor(6).double()
    compactor.weight.data = torch.randn(6, 6, 1, 1, dtype=torch.float64)
    compactor.weight.data[4], compactor.mask[1], compactor.mask[4] = 0, 0, 0
    gradient = torch.randn(6, 6, 1, 1, dtype=torch.float64)
    expected = reference_gradient(compactor.weight, compactor.mask, gradient, 0.01)
    torch.testing.assert_close(compactor_gradient(compactor, gradient, 0.01), expected, rtol=1e-15, atol=1e-17)
    assert compactor_gradient(compactor, gradient, 0.01)[4].eq(0).all()  # a row of zeros has no direction, and no nan


@pytest.mark.parametrize("momentum, lasso, start", [(0.9, 0.02, 100), (0.99, 1e-3, 0), (0.8, 0.01, 550)])
def test_the_norm_that_a_masked_row_ends_with(momentum, lasso, start):
    rates = [0.05 * (1 + math.cos(math.pi * i / 600)) for i in range(600)]
    weight = nn.Parameter(1.5 * F.normalize(torch.randn(5, dtype=torch.float64), dim=0))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum)
    for rate in rates[start:]:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = lasso * weight.detach() / weight.detach().norm()
        optimizer.step()
    assert norm_at_end(rates, momentum, lasso, start) == pytest.approx(weight.norm().item(), rel=1e-6, abs=1e-9)


def masks_after(target: float, step: int, norms: dict[str, list[float]]) -> dict[str, list[int]]:
    """The masks that an update makes of norms, from none."""
    model = ResRep(dict(type="ToyClassifier"))
    hook = ResRepHook(target=target, step=step)
    hook.compactors = compactors_in(model)
    groups = find_groups(model)
    hook.macs = MacsOfWidths(model, {"bn1": groups["conv1"], "bn2": groups["conv2"]})
    for name, values in norms.items():
        hook.compactors[name].weight.data = torch.diag(torch.tensor(values))[..., None, None]
    hook.update_masks()
    return {name: [i for i, value in enumerate(c.mask.tolist()) if not value] for name, c in hook.compactors.items()}


def test_the_smallest_rows_are_masked_until_the_target_or_the_limit():
    norms = dict(bn1=[1, 0.1, 1, 1, 0.3, 1, 1, 1], bn2=[0.2, 1, 1, 1, 1, 1, 1, 0.4])
    assert masks_after(0.01, 3, norms) == dict(bn1=[1, 4], bn2=[0])
    assert masks_after(0.01, 4, norms) == dict(bn1=[1, 4], bn2=[0, 7])
    assert masks_after(0.801, 4, norms) == dict(bn1=[1], bn2=[0])  # 7/8 of conv1, 49/64 of conv2 and 7/8 of conv3
    # One row of each layer stays, and rows that are passed over do not count.
    small = dict(bn1=[0.01 * i for i in range(1, 9)], bn2=[1.0 + i for i in range(8)])
    assert masks_after(0.01, 9, small) == dict(bn1=list(range(7)), bn2=[0, 1])


def test_a_training_removes_filters_and_resumes_bit_for_bit(tmp_path):
    model = runner(tmp_path / "whole", SHORT, epochs=150, model=TOY).train()
    masked = {name: compactor.mask == 0 for name, compactor in compactors_in(model).items()}
    assert all(mask.any() for mask in masked.values())
    for name, compactor in compactors_in(model).items():
        assert (compactor.norms()[masked[name]] < 1e-5).all() and (compactor.norms()[~masked[name]] > 1e-5).all()
    compressed = compress(model.double().eval(), {})
    assert compressed.model.conv1.out_channels == int((~masked["bn1"]).sum())
    share = MacsOfWidths(model, compressed.groups).share(
        {name: len(compressed.model.get_submodule(name).weight) for name in compressed.groups}
    )
    assert share <= 0.5
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    assert relative_error(compressed.model(images), compressed.finished(images)) < 1e-12
    assert relative_error(compressed.finished(images), model(images)) < 1e-5
    checkpoint = str(tmp_path / "whole/epoch_75.pth")
    again = runner(tmp_path / "again", SHORT, epochs=150, model=TOY, load_from=checkpoint, resume=True).train()
    torch.testing.assert_close(again.double().state_dict(), model.state_dict(), rtol=0, atol=0)


def test_compactors_move_by_an_sgd_of_their_own_beside_any_optimizer(tmp_path):
    model = runner(tmp_path, SHORT, epochs=150, model=TOY, optimizer=dict(type="AdamW", lr=2e-3)).train()
    assert all(
        ((compactor.norms() < 1e-5) == (compactor.mask == 0)).all() for compactor in compactors_in(model).values()
    )


@pytest.mark.parametrize(
    "changes, model, settings, message",
    [
        ({}, dict(type="ToyClassifier"), {}, "has no compactors: .*mmrepmlp.ResRep"),
        (dict(target=0.02), TOY, {}, r"target=0.02: with one filter left in each of the 2 layers, 0.0\d+ of"),
        (dict(lasso=1e-4), TOY, {}, "masked in iteration 40, .* would have a norm of 1.5e"),
        ({}, TOY, dict(param_scheduler=[]), "masked in iteration 40, .* end at zero"),
    ],
    ids=["no compactors", "unreachable", "no time", "constant lr"],
)
def test_what_cannot_work_is_one_sentence(changes, model, settings, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        runner(tmp_path, {**SHORT, **changes}, epochs=150, model=model, **settings).train()


@pytest.mark.parametrize("target", [0, 1])
def test_a_target_is_a_share(target):
    with pytest.raises(ValueError, match="target"):
        ResRepHook(target=target)


def test_layers_can_be_picked():
    model = MODELS.build(dict(TOY, layers=["conv2"]))
    assert list(compactors_in(model)) == ["bn2"] and isinstance(model, ToyClassifier)
