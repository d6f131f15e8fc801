# SPDX-License-Identifier: Apache-2.0
"""Convert classifiers to the tensor names of the authors' code."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from torch import Tensor, nn

from mmrepmlp.checkpoint import HEAD, abbreviate, to_official_names
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import RepMLPNet, RepMLPResNet, RepOptVGG

# The authors' names of mmpretrain's head.fc.
HEADS = {RepMLPNet: "head.", RepMLPResNet: "linear.", RepOptVGG: "linear."}


@dataclass
class OfficialReport:
    """Report on a checkpoint with the authors' tensor names.

    Attributes:
        source: The converted checkpoint.
        tensors: Number of tensors.
        numbers: Number of values in them.
        checkpoint: The written file; None if nothing was written.
    """

    source: Path
    tensors: int
    numbers: int
    checkpoint: Path | None = None

    def table(self) -> Table:
        """Return the report as a table to print."""
        table = Table(title=f"{self.checkpoint or self.source}", title_justify="left", box=box.SIMPLE)
        for column in ("names", "tensors", "numbers"):
            table.add_column(column, justify="left" if column == "names" else "right")
        table.add_row("the authors'", f"{self.tensors:,}", f"{self.numbers:,}")
        return table


def official_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a classifier with the names of the authors' network.

    Raises:
        MMRepMLPError: The authors have no such network.
    """
    backbone = getattr(model, "backbone", None)
    head = HEADS.get(type(backbone))
    if head is None:
        raise MMRepMLPError(
            f"--names official: the backbone is {type(backbone).__name__}; the authors' names are known for "
            f"{', '.join(kind.__name__ for kind in HEADS)}."
        )
    if isinstance(backbone, RepMLPNet) and backbone.deploy:
        raise MMRepMLPError(
            "--names official: the checkpoint is in deploy form, with batch norms fused that the authors' network "
            "needs. Pass the checkpoint in training form; the authors' code converts it to their deploy form."
        )
    state = model.state_dict()
    others = [name for name in state if not name.startswith(("backbone.", HEAD)) or ".compactor." in name]
    if others or f"{HEAD}weight" not in state:
        raise MMRepMLPError(
            "--names official: the authors' networks are classifiers with a backbone and one linear layer, head.fc; "
            f"the model has {abbreviate(others) if others else 'no head.fc'}."
        )
    if isinstance(backbone, RepMLPNet) and "backbone.final_norm.weight" not in state:
        raise MMRepMLPError("--names official: the backbone has no final norm, which the authors' network needs.")
    official = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    official = to_official_names(official) if isinstance(backbone, RepMLPNet) else official
    return official | {head + name.removeprefix(HEAD): value for name, value in state.items() if name.startswith(HEAD)}
