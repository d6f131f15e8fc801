# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from mmengine.config import Config

from mmrepmlp.engine import bfloat16
from mmrepmlp.engine.bfloat16 import compute_in_bfloat16
from mmrepmlp.models import RepMLPNet
from mmrepmlp.verbs.model import build_untrained
from tests.conftest import TINY
from tests.fixtures import ROOT
from tests.helpers import relative_error


@pytest.mark.parametrize("deploy", [False, True])
def test_a_network_gives_float32_of_products_in_bfloat16(deploy):
    network = RepMLPNet(TINY, 64).eval()
    if deploy:
        network.switch_to_deploy()
    before = copy.deepcopy(network.state_dict())
    reduced = compute_in_bfloat16(network)
    seen = {}
    for name, module in reduced.named_modules():
        module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        (expected,), (actual,) = network(x), reduced(x)
        with torch.autocast("cpu", torch.bfloat16):
            (cast_in_each_call,) = network(x)
    products = [out.dtype for name, out in seen.items() if name.endswith(("fc3", ".conv", "projection"))]
    assert len(products) > 10 and set(products) == {torch.bfloat16}
    assert torch.equal(actual, cast_in_each_call.float())
    assert actual.dtype == torch.float32 and 1e-4 < relative_error(actual, expected) < 0.05
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype


@pytest.mark.parametrize(
    ("flags", "reduced"),
    [("avx2 avx512_bf16", True), ("avx512f amx_bf16", True), ("fp asimd bf16", True), ("avx2 avx512f", False)],
)
def test_float32_on_a_processor_without_bfloat16(tmp_path, monkeypatch, flags, reduced):
    (tmp_path / "cpuinfo").write_text(f"model name\t: A processor\nflags\t\t: fpu {flags} sse\n")
    monkeypatch.setattr(bfloat16, "CPUINFO", tmp_path / "cpuinfo")
    said = []
    monkeypatch.setattr(bfloat16, "print_log", lambda text, *_: said.append(text))
    network, x = RepMLPNet(TINY, 64).eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        (expected,), (actual,) = network(x), compute_in_bfloat16(network)(x)
    assert torch.equal(actual, expected) is not reduced
    assert said == ([] if reduced else ["This processor has no instructions for bfloat16: computed in float32."])


@pytest.mark.slow
def test_a_detector_of_two_stages_keeps_its_boxes():
    from mmdet.structures import DetDataSample

    cfg = Config.fromfile(ROOT / "configs/cascade_rcnn/cascade-mask-rcnn_repmlpnet-b256_fpn_1x_coco.py")
    cfg.model.backbone.arch, cfg.model.backbone.init_cfg, cfg.model.neck.in_channels = TINY, None, TINY["channels"]
    cfg.model.test_cfg.rpn.update(nms_pre=200, max_per_img=200)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=50)
    model = build_untrained(cfg).eval()
    size = (128, 128)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    found = []
    for variant in (model, compute_in_bfloat16(model)):
        with torch.inference_mode():
            (sample,) = variant.test_step(dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)]))
        found.append(sample.pred_instances)
    before, after = found
    assert len(before) == len(after) == 50 and after.bboxes.dtype == torch.float32
    nearest = torch.cdist(after.bboxes, before.bboxes, p=torch.inf).min(1).values
    assert nearest.median() < 1  # a pixel
