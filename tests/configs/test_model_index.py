# SPDX-License-Identifier: Apache-2.0
"""What the metafiles say of the configs, and the configs as other projects inherit them."""

import re
from pathlib import Path

import mmpretrain.models  # noqa: F401  registers the classifier
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, root
from mmengine.registry import Registry as MMEngineRegistry
from modelindex.load_model_index import load

from mmrepmlp.verbs.model import count_macs, deploy_config
from mmrepmlp.verbs.model import iter_dicts as dicts_in

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").glob("[!_]*/*.py"))


def types_in(path):
    """What a config says of itself that somebody's scope has to find."""
    return frozenset(re.findall(r'type="([^"]+)"', (ROOT / path).read_text()))


# One of those of a folder that name the same types: the others differ in numbers.
DISTINCT = list({(path.split("/")[1], types_in(path), "256" in path): path for path in CONFIGS}.values())
PUBLISHED = {  # of the weights in the index: OpenMMLab's of B, the authors' of the others
    **{"repmlpnet-t224": 76.62, "repmlpnet-t256": 77.44, "repmlpnet-b224": 80.41, "repmlpnet-b256": 81.11},
    **{"repmlpnet-d256": 80.83, "repmlpnet-l256": 81.68},
    **{"repmlp-res50-light": 77.14, "repmlp-res50-bottleneck": 78.55},
}


@pytest.fixture(scope="module")
def index():
    return load(str(ROOT / "model-index.yml"))


def test_modelindex_finds_no_fault_and_every_config_once(index):
    index.check(silent=True)
    assert not index.check_errors and not [e for part in (*index.models, *index.collections) for e in part.check_errors]
    assert sorted(model.config for model in index.models) == CONFIGS
    collections = {"dbb": "DBB", "acb": "ACNet", "repopt_vgg": "RepOpt-VGG"}
    collections |= dict.fromkeys(("repmlp_resnet", "pspnet"), "RepMLP-ResNet")
    collections |= {"aofp": "AOFP", "csgd": "C-SGD", "gsm": "GSM", "resrep": "ResRep"}
    for model in index.models:
        assert model.name == Path(model.config).stem
        method = model.name.partition("_")[0].partition("-")[0]  # of compression
        plain = "ResNet" if "resnet" in model.name else "RepMLPNet"
        assert model.in_collection == collections.get(Path(model.config).parent.name, collections.get(method, plain))


class WithoutValues(torch.nn.Module):
    """A classifier without values, which takes images with values."""

    def __init__(self, model):
        super().__init__()
        self.model, self.backbone = model, model.backbone

    def forward(self, images, mode):
        return self.model(images.to("meta"), mode=mode)


def build(cfg):
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.device("meta"):
        return MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor}).eval()


@pytest.mark.slow
def test_figures_of_the_classifiers(index):
    figures = {model.name: model for model in index.models if model.metadata}
    assert len(figures) == len([path for path in CONFIGS if path.startswith("configs/repmlp")])
    for name, model in figures.items():
        cfg = Config.fromfile(ROOT / model.config)
        trained = build(cfg)
        assert model.metadata.parameters == sum(p.numel() for p in trained.parameters())
        assert model.metadata.flops == count_macs(WithoutValues(build(deploy_config(cfg, trained))))
        variant = name.partition("_")[0]
        if model.results:
            (result,) = model.results
            assert result.metrics == {"Top 1 Accuracy": PUBLISHED.pop(variant)}
            converted = model.data.get("Converted From", {})
            assert ("repmlpnet" in name) is (converted.get("Weights") == "https://github.com/DingXiaoH/RepMLP")
        if model.weights:
            assert (
                model.weights
                == Config.fromfile(ROOT / f"configs/_base_/backbones/{variant}.py").repmlpnet.init_cfg.checkpoint
            )
    assert not PUBLISHED


@pytest.mark.slow
@pytest.mark.parametrize("path", DISTINCT)
def test_inherited_from_elsewhere_everything_is_still_found(path, tmp_path):
    """MMEngine looks what is inherited from a package up in the scope of that package, unless told another."""
    inherited = tmp_path / "config.py"
    inherited.write_text(f"_base_ = ['mmrepmlp::{path.removeprefix('configs/')}']\n")
    original, cfg = Config.fromfile(ROOT / path), Config.fromfile(inherited)
    ours = [part for part in dicts_in(cfg._cfg_dict) if part.get("_scope_") == "mmrepmlp"]
    registries = [value for value in vars(root).values() if isinstance(value, MMEngineRegistry)]
    unused = ("train_pipeline", "test_pipeline")  # variables whose content stands where it is used
    ours = [part for part in ours if not any(part in cfg.get(name, ()) for name in unused)]
    for part in ours:
        kind = part.type
        assert kind.startswith("mmrepmlp.") or any(kind in registry.module_dict for registry in registries), part
    for part in (*dicts_in(cfg._cfg_dict), *dicts_in(original._cfg_dict)):
        part.pop("_scope_", None)
    assert cfg._cfg_dict.to_dict() == original._cfg_dict.to_dict()
