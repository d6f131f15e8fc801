# SPDX-License-Identifier: Apache-2.0
"""Links, paths and commands in the documentation."""

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch

from mmrepmlp.cli import VERBS, make_parser
from tests.end_to_end.test_tools import parser_of
from tests.helpers import randomize

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/[!_]*/**/*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.M)
TOOL = re.compile(r"(?<![\w/.])(?:tools|dev)/[\w/]+\.(?:py|sh)")
COMMAND = re.compile(rf"(?<![\w/.:<-])(?:mmrepmlp (?:{'|'.join(VERBS)})\b|tools/[\w/]+\.(?:py|sh))")
FENCE = re.compile(r"^```(?:bash|text)\n(.*?)^```", re.M | re.S)
# The options of these scripts are those of a verb.
STARTED = {
    "dist_train.sh": "train",
    "slurm_train.sh": "train",
    "dist_test.sh": "test",
    "slurm_test.sh": "test",
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
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_index_lists_every_page():
    index = (ROOT / "docs/index.md").read_text()
    assert all(f"({page.name})" in index for page in ROOT.glob("docs/*.md") if page.name != "index.md")


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each command in a page, a verb or the name of a script, with the words after it."""
    found = []
    for block in FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.search(line):
                words = line[match.end() :].replace("[", " ").replace("]", " ")
                name = match[0].removeprefix("mmrepmlp ").removeprefix("tools/")
                found.append((name, shlex.split(words, comments=True)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_in_a_command_is_one_of_it(page):
    verbs = make_parser()._subparsers._group_actions[0].choices
    for name, words in commands(page):
        name = STARTED.get(name, name.removesuffix(".py") if name.removesuffix(".py") in verbs else name)
        if name.endswith(".sh"):
            continue
        parser = verbs[name] if name in verbs else parser_of(name)
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= set(parser._option_string_actions), (name, given)


def test_every_verb_and_option_is_in_a_page():
    text = "\n".join(page.read_text() for page in ROOT.glob("docs/**/*.md"))
    shown = {name for page in PAGES for name, _ in commands(page)}
    assert set(VERBS) <= shown
    for name, parser in make_parser()._subparsers._group_actions[0].choices.items():
        options = {option for option in parser._option_string_actions if option.startswith("--")}
        missing = {option for option in options if f"{option}" not in text}
        assert missing <= {"--help", "--local-rank", "--local_rank"}, (name, missing)


def python_in(page: str) -> str:
    """The first block of Python in a page."""
    return re.search(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["other_networks", "torchscript_fx"])
def test_what_a_page_shows_works(page):
    exec(python_in(f"docs/{page}.md"), {})


def test_a_block_of_ones_own_is_converted_exactly_and_loads_both_forms():
    code = python_in("docs/own_block.md")
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("from", "import"))]) <= 25
    names = {}
    exec(code, names)
    torch.manual_seed(0)
    block = randomize(names["SideBySide"](6), torch.Generator().manual_seed(0)).double().eval()
    images, state = torch.randn(2, 6, 9, 7, dtype=torch.float64), copy.deepcopy(block.state_dict())
    expected = block(images)
    deployed = names["SideBySide"](6, deploy=True).double().eval()
    deployed.load_state_dict(state)
    block.switch_to_deploy()
    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "conv.bias"]
    for form in (block, deployed):
        torch.testing.assert_close(form(images), expected, rtol=1e-12, atol=1e-12)
