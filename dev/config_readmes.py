# SPDX-License-Identifier: Apache-2.0
"""Write the tables of configs/*/README.md from the metafiles beside them and the first comments of the configs."""

import argparse
import re
from pathlib import Path

from modelindex.load_model_index import load
from modelindex.models.Model import Model

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(?<=<!-- configs -->\n)(.*?)(?=<!-- end of configs -->)", re.S)
COLUMNS = {
    "parameters": lambda model: f"{model.metadata.parameters / 1e6:.1f} M" if model.metadata else "",
    "GMACs": lambda model: f"{model.metadata.flops / 1e9:.3g}" if model.metadata else "",
    "top-1, % (published)": lambda model: f"{model.results[0].metrics['Top 1 Accuracy']}" if model.results else "",
    "weights": lambda model: f"[file]({model.weights})" if model.weights else "",
    "about": lambda model: first_comment(ROOT / model.config),
}


def first_comment(config: Path) -> str:
    """The first sentence of the comment at the top of a config, behind the licence."""
    lines = config.read_text(encoding="utf-8").splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    text = " ".join(line.removeprefix("# ") for line in lines[:end])
    return re.split(r"(?<=[.:]) (?=[A-Z])", text)[0]


def table(models: list[Model]) -> str:
    """A table in Markdown of configs, with the columns that any of them has something in."""
    cells = {title: [column(model) for model in models] for title, column in COLUMNS.items()}
    names = [f"[{model.name}]({Path(model.config).name})" for model in models]
    columns = {"config": names} | {title: values for title, values in cells.items() if any(values)}
    rows = [columns, ["---"] * len(columns), *zip(*columns.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for metafile in sorted(ROOT.glob("configs/*/metafile.yml")):
        page = metafile.with_name("README.md")
        before, _, behind = TABLE.split(page.read_text())
        page.write_text(before + table(list(load(str(metafile)).models)) + behind)


if __name__ == "__main__":
    main()
