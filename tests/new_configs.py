# SPDX-License-Identifier: Apache-2.0
"""Configs in pure Python, with classes as types, as mmdetection's newest are."""

from collections.abc import Mapping
from inspect import isclass

import mmcv.ops
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry, root


def new_style(cfg: Config) -> str:
    """The text of a config whose types are imported, written from one with names; its default scope is None."""
    imports = {}

    def write(value: object, key: object = None) -> str:
        if isinstance(value, Mapping):
            return f"dict({', '.join(f'{name}={write(part, name)}' for name, part in value.items())})"
        if isinstance(value, (list, tuple)):
            return f"{type(value).__name__}([{', '.join(write(part) for part in value)}])"
        found = find(value) if key == "type" else None
        if found is None:
            return repr(value)
        name = f"{found.__name__}_{len(imports)}"
        imports[name] = f"from {found.__module__} import {found.__name__} as {name}"
        return name

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        settings = {**cfg.to_dict(), "default_scope": None}
        lines = [f"{key} = {write(value)}" for key, value in settings.items()]
    return "\n".join([*imports.values(), *lines])


def find(name: str) -> object:
    """The class or function of a name."""
    for registry in (value for value in vars(root).values() if isinstance(value, Registry)):
        with registry.switch_scope_and_registry(None) as current:
            if (found := current.get(name)) is not None:
                return found if isclass(found) or callable(found) else None
    return getattr(mmcv.ops, name, None)
