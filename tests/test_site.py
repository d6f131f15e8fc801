# SPDX-License-Identifier: Apache-2.0
"""The site: it builds without warnings, documents everything public, and works in a browser."""

import importlib
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

from mmrepmlp.cli import VERBS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium")
MODULES = ("apis", "models", "compression", "engine", "quantization", "export", "reparam", "checkpoint")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "ignore", "-m", "sphinx", "--quiet", "--fail-on-warning", ROOT / "docs", out]
    subprocess.run([*command, "--doctree-dir", out / "doctrees"], check=True)
    return out


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_in_the_reference(site, name):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    documented = {entry for kind, entries in inventory.items() if kind.startswith("py:") for entry in entries}
    module = importlib.import_module(f"mmrepmlp.{name}")
    public = {public for public in module.__all__ if callable(getattr(module, public))}  # no constants
    assert public and {f"mmrepmlp.{name}.{public}" for public in public} <= documented


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_with_its_options(site, verb):
    page = (site / f"commands/{verb}.html").read_text()
    assert "--cfg-options" in page and "SUPPRESS" not in page


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


def browse(url: str, folder: Path, width: int = 1400, dark: bool = False) -> str:
    """Open a page in a browser; returns what it shows, and refuses messages in its console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000"]
    options += [f"--user-data-dir={folder}", f"--window-size={width},900"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([BROWSER, *options, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width, dark", [(1400, False), (390, True)])
@pytest.mark.parametrize("page", ["index", "compression", "api/models"])
def test_pages_open_without_messages_in_the_console(page, width, dark, address, tmp_path):
    assert "<h1>" in browse(f"{address}/{page}.html", tmp_path, width, dark)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_search_finds_names(address, tmp_path):
    text = browse(f"{address}/search.html?q=switch_to_deploy", tmp_path)
    assert re.search(r'<a href="api/reparam\.html[^"]*"', text)
