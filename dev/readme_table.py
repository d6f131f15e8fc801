# SPDX-License-Identifier: Apache-2.0
"""The speed table of the README, made from benchmark results."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.networks import OURS, THEIRS
from mmrepmlp.verbs.benchmark.runtimes import DEPLOY

HEADER = """\
| deploy form | batch | mmpretrain, ms | mmrepmlp, ms | speed-up | largest error |
| --- | ---: | ---: | ---: | ---: | ---: |"""
CAPTION = (
    "{dtype}, {threads} threads, {processor} with {vectors}, torch {torch}, Python {python}; medians of {repeats} "
    "interleaved calls. Largest error: largest difference from the output of mmpretrain's training form, relative to "
    "its largest value."
)


def speed_table(results: Sequence[str | Path]) -> str:
    """Put the deploy forms of several benchmark results in one Markdown table, with the environment below it.

    Args:
        results: JSON files that ``mmrepmlp benchmark --against mmpretrain --json`` wrote, in the table's order.

    Raises:
        MMRepMLPError: A file is no such result, or the results come from different environments.
    """
    lines, captions = [HEADER], {}
    for path in results:
        environment, rows = read_result(path)
        captions[path] = CAPTION.format(**environment)
        for batch in dict.fromkeys(row["batch"] for row in rows):
            theirs, ours = (next(r for r in rows if (r["model"], r["batch"]) == (m, batch)) for m in (THEIRS, OURS))
            error = "" if ours["error"] is None else f"{ours['error']:.0e}"
            lines.append(
                f"| {environment['arch']} | {batch} | {theirs['milliseconds']:.1f} | {ours['milliseconds']:.1f} | "
                f"{ours['speedup']:.2f} | {error} |"
            )
    if len(set(captions.values())) > 1:
        raise MMRepMLPError(
            f"{' and '.join(map(str, captions))} were measured in different environments, which one table would hide. "
            "Measure them anew on one machine with the same options."
        )
    return "\n".join(lines) + "\n\n" + textwrap.fill(captions.popitem()[1], 120)


def read_result(path: str | Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Read the environment and the deploy form's rows of a benchmark result.

    Raises:
        MMRepMLPError: The file is no result with deploy forms.
    """
    try:
        content = json.loads(Path(path).read_text())
        rows = [row for row in content["rows"] if row["task"] == DEPLOY]
        environment = content["environment"]
    except (ValueError, KeyError, TypeError):
        rows = []
    if not rows:
        raise MMRepMLPError(
            f"{path} holds no deploy form beside mmpretrain's. Write it with mmrepmlp benchmark --against mmpretrain "
            "--json."
        )
    return environment, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULT.json", help="what mmrepmlp benchmark --json wrote")
    print(speed_table(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
