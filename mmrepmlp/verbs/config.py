# SPDX-License-Identifier: Apache-2.0
"""Read configs, from files and from installed packages."""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import getmro, isclass
from pathlib import Path
from traceback import extract_tb

from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.hub import get_config
from mmengine.registry import DATASETS, MODELS, DefaultScope, Registry, root
from mmengine.utils import get_object_from_string

from mmrepmlp.checkpoint import trained_metainfo

FRAMEWORKS = ("mmpretrain", "mmseg", "mmdet")


def read_config(config: str | Path, cfg_options: dict | None = None) -> Config:
    """Read a config, from a file or from an installed package.

    Args:
        config: Path of the file, or ``package::path``, e.g. ``mmdet::atss/atss_r50_fpn_1x_coco.py``.
        cfg_options: Config settings to override, by dotted name. Default: None.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: The package, or one that the config imports, is not installed.
        ValueError: ``package::path`` names no config, the file is not a config, or the config has no model.
    """
    in_package = "::" in str(config)
    try:
        cfg = use_registered_names(get_config(str(config)) if in_package else Config.fromfile(config))
        cfg.merge_from_dict(cfg_options or {})
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # a config file may raise anything
        # These messages talk about MMEngine's functions, not about the config.
        if in_package and isinstance(error, (AssertionError, ValueError)):
            raise ValueError(
                f"{config} does not name a config of an installed package. Expected package::folder/config.py, e.g. "
                "mmdet::atss/atss_r50_fpn_1x_coco.py."
            ) from error
        places = [place for place in extract_tb(error.__traceback__) if place.name == "<module>"]
        location = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
        raise ValueError(f"{config} cannot be read as a config: {type(error).__name__}: {error}{location}") from error
    if not isinstance(cfg.get("model"), Mapping):
        raise ValueError(f"{config} has no model. Pass a complete config; those in configs/_base_ are only parts.")
    weights, folder = Path(str(cfg.get("load_from"))), Path(config).parent
    if weights.name == cfg.get("load_from") and not weights.exists() and (folder / weights).is_file():
        cfg.load_from = str(folder / weights)  # a deploy form has its weights beside its config
    return cfg


def use_registered_names(cfg: Config) -> Config:
    """Replace the classes and functions in a pure-Python config by their registered names.

    MMEngine writes such configs with module paths, some of which resolve to something else when they are read back.
    """
    settings = {key: cfg[key] for key in cfg.to_dict()}  # without the modules that the file imports
    named = replace_callables(settings)
    return cfg if named == settings else Config(named, filename=cfg.filename)


def replace_callables(settings: object) -> object:
    """Replace classes and functions in nested settings by their names."""
    if isinstance(settings, Mapping):
        return {key: replace_callables(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(replace_callables(part) for part in settings)
    if isinstance(settings, (LazyObject, LazyAttr)):  # in lists
        settings = settings.build()
    return registered_name(settings) if hasattr(settings, "__qualname__") else settings


def registered_name(target: Callable) -> object:
    """Return the name of a class or function in MMEngine's registries or in mmcv.ops, or else its module path.

    If no name resolves to the object, it is returned itself.
    """
    registries = [registry for registry in vars(root).values() if isinstance(registry, Registry)]
    for registry in registries:
        registries += registry.children.values()
        for name, registered in registry.module_dict.items():
            if registered is target:
                return name if registry.scope == "mmengine" else f"{registry.scope}.{name}"
    module, name = target.__module__, target.__qualname__
    if module.startswith("mmcv.ops.") and getattr(import_module("mmcv.ops"), name, None) is target:
        return name  # where frameworks look for non-maximum suppression and RoI layers
    return f"{module}.{name}" if get_object_from_string(f"{module}.{name}") is target else target


def framework_of(cfg: Config) -> str | None:
    """Return the framework of a config: its default scope, or the package of its model's type; None if unknown."""
    if cfg.get("default_scope"):
        return cfg.default_scope
    kind = resolve_type(cfg.model, MODELS)
    packages = [base.__module__.partition(".")[0] for base in (getmro(kind) if isclass(kind) else ())]
    return next((package for package in packages if package in FRAMEWORKS), None)


def require(cfg: Config, *names: str) -> None:
    """Check that a config sets everything that MMEngine needs to run.

    Raises:
        ValueError: A setting is missing.
    """
    missing = [name for name in names if cfg.get(name) is None]
    if missing:
        raise ValueError(f"The config sets no {' and no '.join(missing)}: nothing to run. Add what is missing.")


def load_config(
    config: str | Path, cfg_options: dict | None = None, work_dir: str | None = None, launcher: str = "none"
) -> Config:
    """Read a config to run, as :func:`read_config` does, and set its work dir and launcher.

    The work dir defaults to the config's, or else ``work_dirs/<config name>``.
    """
    cfg = read_config(config, {"launcher": launcher, **(cfg_options or {})})
    add_import(cfg)
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs") / Path(config).stem)
    if framework_of(cfg) == "mmpretrain":
        # mmpretrain's configs rely on these defaults of its tools.
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if isinstance(cfg.get(name), Mapping):
                defaults = dict(persistent_workers=cfg[name].get("num_workers", 0) > 0)
                cfg[name] = ConfigDict({**defaults, "collate_fn": dict(type="default_collate"), **cfg[name]})
    return cfg


def add_import(cfg: Config) -> None:
    """Add this package to a config's ``custom_imports``, for inferencers, which read a checkpoint next."""
    imports = as_list((cfg.get("custom_imports") or {}).get("imports"))
    if "mmrepmlp" not in imports:
        cfg.custom_imports = {**(cfg.get("custom_imports") or {}), "imports": [*imports, "mmrepmlp"]}


def innermost_dataset(cfg: Config) -> ConfigDict:
    """Return the config of the test dataset, the first one inside wrappers; empty if there is none."""
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or ConfigDict()
    while inner := dataset.get("dataset") or dataset.get("datasets"):
        dataset = inner[0] if isinstance(inner, list) else inner
    return dataset


def class_metainfo(cfg: Config, meta: Mapping) -> dict:
    """Return the metainfo of the test dataset (``classes``, ``palette`` and more) without reading the data.

    It comes from config and class of the dataset; entries in a checkpoint's ``meta`` take precedence.
    """
    dataset = innermost_dataset(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        kind = resolve_type(dataset, DATASETS)
    classes = {"classes": dataset["classes"]} if dataset.get("classes") else {}
    known = {**getattr(kind, "METAINFO", {}), **classes, **(dataset.get("metainfo") or {})}
    if not isinstance(known.get("classes", ()), (list, tuple)):
        del known["classes"]
    return {**known, **trained_metainfo(meta)}


def resolve_type(part: Mapping, registry: Registry) -> object:
    """Return the class or function that a part's ``type`` names in the current default scope; None if unknown."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as current:
        return current.get(kind)


def as_list(value: object) -> list:
    """Convert a value to a list: None to an empty list, a single value to a list of one."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
