# SPDX-License-Identifier: Apache-2.0
"""Links, paths and commands in the documentation."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.M)
TOOL = re.compile(r"(?<![\w/.])tools/[\w/]+\.(?:py|sh)")
FENCE = re.compile(r"^```(?:bash|text)\n(.*?)^```", re.M | re.S)
# The options of these scripts are those of a tool.
STARTED = {
    "dist_train.sh": "train.py",
    "slurm_train.sh": "train.py",
    "dist_test.sh": "test.py",
    "slurm_test.sh": "test.py",
}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(page):
    for target in ("".join(found) for found in LINK.findall(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_tool_that_is_named_exists(page):
    if page.name != "CHANGELOG.md":  # which names former ones as well
        assert all((ROOT / tool).is_file() for tool in TOOL.findall(page.read_text()))


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 170


def test_the_index_lists_every_page():
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({page.name})" in index for page in ROOT.glob("docs/*.md") if page.name != "README.md")


def commands(page: Path) -> list[list[str]]:
    """The words of each command in a page that runs a tool, from the tool's path on."""
    found = []
    for block in FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            match = TOOL.search(line)
            if match:
                found.append(shlex.split(line[match.start() :].replace("[", " ").replace("]", " "), comments=True))
    return found


def options(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """The options of a parser, or of the subcommand that the words name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return options(next(action.choices[word] for word in words if word in action.choices), words)
    return set(parser._option_string_actions)


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a tool, which is built and then not run."""

    def build(tool: str) -> argparse.ArgumentParser:
        spec = importlib.util.spec_from_file_location("tool", ROOT / tool)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        built = []

        def stop(parser: argparse.ArgumentParser, operation: object) -> None:
            built.append(parser)
            raise InterruptedError

        monkeypatch.setattr(module, "run_tool", stop)
        with pytest.raises(InterruptedError):
            module.main()
        return built[0]

    return build


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_in_a_command_is_one_of_the_tool(page, parser_of):
    for tool, *words in commands(page):
        path = Path(tool)
        if path.suffix == ".sh" and path.name not in STARTED:
            continue
        known = options(parser_of(str(path.with_name(STARTED.get(path.name, path.name)))), words)
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, (tool, given - known)
