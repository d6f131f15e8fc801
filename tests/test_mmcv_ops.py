# SPDX-License-Identifier: Apache-2.0
"""The operators of the compiled mmcv that detectors and segmentors use, against torchvision's and plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv import ops
from mmdet.models.losses import FocalLoss
from torch import Tensor

TOLERANCE = dict(rtol=1e-4, atol=1e-5)


def random_boxes(count: int) -> Tensor:
    """(count, 4) boxes, many of which overlap."""
    corners = 40 * torch.rand(count, 2)
    return torch.cat([corners, corners + 1 + 30 * torch.rand(count, 2)], 1)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a weighted sum of the output, which no rearrangement of its elements leaves the same."""
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weight).sum(), inputs)


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other, **TOLERANCE)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_nms(threshold):
    boxes, scores = random_boxes(300), torch.rand(300)
    detections, kept = ops.nms(boxes, scores, threshold)
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert 0 < len(kept) < 300
    assert torch.equal(kept, expected)
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], 1)[expected])


def test_soft_nms_of_linear_decay():
    """Each remaining score is multiplied by 1 - IoU with the best box, where the IoU is above the threshold."""
    boxes, scores = random_boxes(40), torch.rand(40)
    detections, kept = ops.soft_nms(boxes, scores, iou_threshold=0.3, min_score=1e-3, method="linear")
    overlaps, left, expected = torchvision.ops.box_iou(boxes, boxes), scores.clone(), []
    while left.max() > 1e-3:
        best = left.argmax()
        expected.append((best.item(), left[best].item()))
        left = torch.where(overlaps[best] > 0.3, left * (1 - overlaps[best]), left)
        left[best] = -1
    assert kept.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(detections[:, 4], torch.tensor([score for _, score in expected]), **TOLERANCE)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_batched_nms(class_agnostic):
    boxes, scores, labels = random_boxes(300), torch.rand(300), torch.randint(4, (300,))
    settings = dict(type="nms", iou_threshold=0.4)
    detections, kept = ops.batched_nms(boxes, scores, labels, settings, class_agnostic)
    groups = torch.zeros_like(labels) if class_agnostic else labels
    expected = torchvision.ops.batched_nms(boxes, scores, groups, 0.4)
    assert torch.equal(kept, expected)
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], 1)[expected])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align(aligned, sampling_ratio):
    maps = torch.randn(2, 3, 20, 25, requires_grad=True)
    rois = torch.cat([torch.randint(2, (30, 1)), random_boxes(30)], 1)
    actual = ops.roi_align(maps, rois, (5, 7), 0.4, sampling_ratio, "avg", aligned)
    expected = torchvision.ops.roi_align(maps, rois, (5, 7), 0.4, sampling_ratio or -1, aligned)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert_all_close(gradients(actual, maps), gradients(expected, maps))


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("stride, padding, dilation, groups, offset_groups", [(1, 1, 1, 1, 1), (2, 2, 2, 2, 2)])
def test_deformable_convolutions(modulated, stride, padding, dilation, groups, offset_groups):
    x = torch.randn(2, 4, 11, 13, requires_grad=True)
    weight = torch.randn(6, 4 // groups, 3, 3, requires_grad=True)
    height, width = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    offset = (2 * torch.randn(2, offset_groups * 18, height, width)).requires_grad_()
    mask, bias = torch.rand(2, offset_groups * 9, height, width, requires_grad=True), torch.randn(6, requires_grad=True)
    placement = (stride, padding, dilation)
    if modulated:
        inputs = (x, offset, mask, weight, bias)
        actual = ops.modulated_deform_conv2d(*inputs, *placement, groups, offset_groups)
        expected = torchvision.ops.deform_conv2d(x, offset, weight, bias, *placement, mask)
    else:
        inputs = (x, offset, weight)
        actual = ops.deform_conv2d(*inputs, *placement, groups, offset_groups)
        expected = torchvision.ops.deform_conv2d(x, offset, weight, None, *placement)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert_all_close(gradients(actual, *inputs), gradients(expected, *inputs))


def test_psa_mask():
    """Position q of the output at p is the mask's at q - p from its centre, or 0 outside of it."""
    size, mask_size = (4, 5), (7, 9)
    mask = torch.randn(2, math.prod(mask_size), *size)
    collected, distributed = (ops.PSAMask(kind, mask_size)(mask) for kind in ("collect", "distribute"))
    expected = torch.zeros(2, *size, *size)
    for y, x in torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])):
        for row, column in torch.cartesian_prod(torch.arange(mask_size[0]), torch.arange(mask_size[1])):
            i, j = y + row - mask_size[0] // 2, x + column - mask_size[1] // 2
            if 0 <= i < size[0] and 0 <= j < size[1]:
                expected[:, i, j, y, x] = mask[:, row * mask_size[1] + column, y, x]
    assert torch.equal(collected, expected.view(2, -1, *size))
    assert torch.equal(distributed, expected.permute(0, 3, 4, 1, 2).reshape(2, -1, *size))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mmcv has it for GPUs alone")
def test_focal_loss_on_a_gpu():
    logits, labels = torch.randn(50, 7, device="cuda", requires_grad=True), torch.randint(8, (50,), device="cuda")
    actual = ops.sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, "sum")
    targets = F.one_hot(labels, 8)[:, :7].to(logits)
    expected = torchvision.ops.sigmoid_focal_loss(logits, targets, 0.25, 2.0, "sum")
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert_all_close(gradients(actual, logits), gradients(expected, logits))


def test_focal_loss_is_bound_though_it_has_no_cpu_kernel():
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss_forward_impl: implementation for device cpu not found"):
        ops.sigmoid_focal_loss(torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0]))


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (1.5, 0.6)])
def test_focal_loss_of_mmdet(gamma, alpha):
    """What detectors train with where there is no kernel."""
    logits, labels = torch.randn(50, 7, requires_grad=True), torch.randint(8, (50,))
    actual = FocalLoss(gamma=gamma, alpha=alpha)(logits, labels, avg_factor=1)
    expected = torchvision.ops.sigmoid_focal_loss(logits, F.one_hot(labels, 8)[:, :7].float(), alpha, gamma, "sum")
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert_all_close(gradients(actual, logits), gradients(expected, logits))
