# SPDX-License-Identifier: Apache-2.0
"""Classifiers of the authors' networks under the authors' names."""

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
    """A checkpoint that was written under the authors' names."""

    source: Path
    tensors: int
    numbers: int  # in the tensors
    checkpoint: Path | None = None  # the file, if one was written

    def table(self) -> Table:
        """The report to print."""
        table = Table(title=f"{self.checkpoint or self.source}", title_justify="left", box=box.SIMPLE)
        for column in ("names", "tensors", "numbers"):
            table.add_column(column, justify="left" if column == "names" else "right")
        table.add_row("the authors'", f"{self.tensors:,}", f"{self.numbers:,}")
        return table


def official_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a classifier with the names of the authors' network, if there is such a one."""
    backbone = getattr(model, "backbone", None)
    head = HEADS.get(type(backbone))
    if head is None:
        raise MMRepMLPError(
            f"--names official: the backbone is {type(backbone).__name__}; the authors' names are known of "
            f"{', '.join(kind.__name__ for kind in HEADS)}."
        )
    if isinstance(backbone, RepMLPNet) and backbone.deploy:
        raise MMRepMLPError(
            "--names official: the checkpoint is in deploy form, in which batch norms are fused that the authors' "
            "network needs. Take the checkpoint in training form; the authors' code converts it to theirs."
        )
    state = model.state_dict()
    others = [name for name in state if not name.startswith(("backbone.", HEAD)) or ".compactor." in name]
    if others or f"{HEAD}weight" not in state:
        raise MMRepMLPError(
            "--names official: the authors' networks are classifiers of a backbone and one linear layer, head.fc; the "
            f"model has {abbreviate(others) if others else 'no head.fc'}."
        )
    if isinstance(backbone, RepMLPNet) and "backbone.final_norm.weight" not in state:
        raise MMRepMLPError("--names official: the backbone has no final norm, which the authors' network needs.")
    own = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    own = to_official_names(own) if isinstance(backbone, RepMLPNet) else own
    return own | {head + name.removeprefix(HEAD): value for name, value in state.items() if name.startswith(HEAD)}
