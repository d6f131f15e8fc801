# SPDX-License-Identifier: Apache-2.0
"""Settings of the site: ``make docs`` builds it into docs/_build/html."""

import os
import re
import sys
from pathlib import Path

from mmrepmlp.version import __version__

sys.path.insert(0, str(Path(__file__).parent))  # verbs.py, for the pages of the commands

project, author, release = "mmrepmlp", "the mmrepmlp authors", __version__
copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"mmrepmlp {release}"
copybutton_prompt_text = "$ "

LINK_OUT = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)]+)\)")
REPOSITORY = os.environ.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")
COMMIT = os.environ.get("READTHEDOCS_GIT_COMMIT_HASH", "main")


def link_to_repository(app: object, docname: str, source: list[str]) -> None:
    """Let links to files beside docs/ lead to the repository that the site was built from; without one, name them."""

    def replace(match: re.Match) -> str:
        text, path = match.groups()
        path = os.path.normpath(os.path.join("docs", os.path.dirname(docname), path))
        if path.startswith("docs"):
            return match[0]
        return f"[{text}]({REPOSITORY}/blob/{COMMIT}/{path})" if REPOSITORY else f"{text} (`{path}`)"

    source[0] = LINK_OUT.sub(replace, source[0])


def setup(app: object) -> None:
    """What Sphinx calls."""
    app.connect("source-read", link_to_repository)
