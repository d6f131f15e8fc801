# SPDX-License-Identifier: Apache-2.0
from torch import nn

PARTS = ("backbone", "neck")


def named_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model whose outputs show what a conversion did, wherever in the model they are.

    These are backbones and necks, and whatever else has a deploy form; of nested ones the outermost.

    Args:
        model: A model of any framework, or a bare backbone.

    Returns:
        Modules by their dotted names; a bare backbone that converts itself is called ``"backbone"``.
    """
    if hasattr(model, "switch_to_deploy") and not isinstance(getattr(model, "backbone", None), nn.Module):
        return {"backbone": model}
    parts = {}
    for name, child in model.named_children():
        if name in PARTS or hasattr(child, "switch_to_deploy"):
            parts[name] = child
        else:
            parts.update({f"{name}.{path}": part for path, part in named_parts(child).items()})
    return parts
