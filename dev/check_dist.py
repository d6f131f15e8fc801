# SPDX-License-Identifier: Apache-2.0
"""Install what is in dist/ the way others do, each extra in an environment of its own, and try what it promises.

The wheel is installed into virtual environments in a temporary folder, which is also where the commands run, so that
nothing finds the clone. The source distribution must give the same files. ``make dist`` writes both.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dev.check_environments import ROOT, reason, say

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "mmrepmlp")
# Not in the source distribution: settings of services that read a repository.
UNPACKED = (".ci", ".github", ".gitignore", ".pre-commit-config.yaml", ".readthedocs.yaml")

SCRIPTS = {
    # Without a framework, the package says what to install.
    "refuse.py": """
try:
    import mmrepmlp
except ImportError as error:
    assert "pip install 'mmrepmlp[cls]'" in str(error), error
else:
    raise AssertionError("imported without a framework")
""",
    # All modules are imported but those in the arguments, which need what is not installed.
    "modules.py": """
import importlib, pkgutil, sys
import mmrepmlp
for found in pkgutil.walk_packages(mmrepmlp.__path__, "mmrepmlp.", onerror=lambda name: None):
    refuses = found.name.startswith(tuple(sys.argv[1:]))
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        if not refuses:
            raise
    else:
        assert not refuses, f"{found.name} is imported without what it needs"
""",
    # The model of a config predicts the same in both forms.
    "build.py": """
import sys
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmrepmlp import RepMLPNet, switch_to_deploy
cfg = get_config(sys.argv[1])
cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
    model = MODELS.build(cfg.model).eval()
    assert type(model.backbone) is RepMLPNet
    images = torch.rand(1, 3, 120, 152)
    before = model(images)
    switch_to_deploy(model)
    torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-3)
""",
    "groups.py": """
import sys
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmrepmlp.compression import find_groups
cfg = get_config(sys.argv[1])
cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
with DefaultScope.overwrite_default_scope(cfg.default_scope):
    assert find_groups(MODELS.build(cfg.model))
""",
}

NAME = "repmlpnet-mini_1xb64_digits-64px.py"
FEW = "train_dataloader.dataset.indices=192 val_dataloader.dataset.indices=64 test_dataloader.dataset.indices=64"
TRAIN = f"mmrepmlp train mmrepmlp::repmlpnet/{NAME} --work-dir run --cfg-options train_cfg.max_epochs=1 {FEW}"
TRAINED = f"run/{NAME} run/epoch_1.pth"
USE = (
    TRAIN,
    f"mmrepmlp test {TRAINED}",
    f"mmrepmlp infer {TRAINED} data/digits/val/3 --out predictions",
    f"mmrepmlp reparameterize {TRAINED} deploy.pth --verify-on test",
    "mmrepmlp test deploy.py --show-dir shown",
)
UPERNET = "python build.py mmrepmlp::upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py"
RETINANET = "python build.py mmrepmlp::retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py"
DEPLOYED = (
    "mmrepmlp.export",
    *(f"mmrepmlp.verbs.deploy.{name}" for name in ("deploy", "graph", "images", "pipeline", "proof")),
    "mmrepmlp.verbs.test.evaluate_deployment",
    "mmrepmlp.verbs.benchmark.deployments",
)
WITHOUT_EXPORT = f"python modules.py {' '.join(DEPLOYED)}"
WITHOUT_OPENVINO = "python modules.py mmrepmlp.export.openvino mmrepmlp.export.post_training"
HELP = ("mmrepmlp --help", "python -m mmrepmlp --version")


@dataclass(frozen=True)
class Installation:
    """One way to install the wheel, and the commands that must work then.

    Attributes:
        extras: Those of the wheel, as in ``pip install 'mmrepmlp[extras]'``.
        mmcv: What is compiled and installed beforehand, by the file in requirements/ that pins it.
        others: Requirements that are installed as well.
        commands: What is run, in a folder that has the digits and :data:`SCRIPTS`.
    """

    extras: str
    mmcv: str = ""
    others: str = ""
    commands: tuple[str, ...] = ()


INSTALLATIONS = {
    "core": Installation("", commands=(*HELP, "python refuse.py")),
    "mmcv-lite": Installation(
        "", others="mmengine mmcv-lite mmpretrain torchvision setuptools<81", commands=(WITHOUT_EXPORT, *USE)
    ),
    "cls": Installation("cls", "openmmlab", commands=(*HELP, WITHOUT_EXPORT, *USE)),
    "seg": Installation("seg", "openmmlab", commands=(*HELP, WITHOUT_EXPORT, UPERNET)),
    "det": Installation("det", "openmmlab", commands=(*HELP, WITHOUT_EXPORT, RETINANET)),
    "onedl-cls": Installation("onedl-cls", commands=(*HELP, WITHOUT_EXPORT, *USE)),
    "onedl-seg": Installation("onedl-seg", "onedl", commands=(*HELP, WITHOUT_EXPORT, UPERNET)),
    "onedl-det": Installation("onedl-det", "onedl", commands=(*HELP, WITHOUT_EXPORT, RETINANET)),
    "export": Installation(
        "cls,export",
        "openmmlab",
        commands=(
            WITHOUT_OPENVINO,
            TRAIN,
            f"mmrepmlp deploy {TRAINED} network.onnx --raw",
            f"mmrepmlp deploy {TRAINED} network --runtime onnxruntime",
            f"mmrepmlp test run/{NAME} network",
            "python network/run.py data/digits/val/3",
        ),
    ),
    "openvino": Installation(
        "cls,openvino",
        "openmmlab",
        commands=(
            "python modules.py",
            TRAIN,
            f"mmrepmlp deploy {TRAINED} network",
            f"mmrepmlp test run/{NAME} network",
            "python network/run.py data/digits/val/3",
            f"mmrepmlp deploy {TRAINED} network_int8 --precision int8 --images 64 --max-drop 100",
            f"mmrepmlp benchmark run/{NAME} network network_int8",
        ),
    ),
    "prune": Installation(
        "cls,prune",
        "openmmlab",
        commands=("python -c 'import sklearn.cluster'", f"python groups.py mmrepmlp::repmlpnet/{NAME}"),
    ),
}
RESOLVED = ("docs", "dev")  # of which only that pip finds versions is checked


class CheckError(Exception):
    """Something does not work as a distribution."""


def run(command: Sequence[str | Path], log: Path, folder: Path, bin_dir: Path) -> None:
    """Run a command in a folder and an environment, with its output at the end of a log.

    Raises:
        CheckError: It fails; the message has the error.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    path = f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
    env = {**inherited, "PATH": path, "PYTHONNOUSERSITE": "1", "PYTHONWARNINGS": "ignore", "CFLAGS": "-g0 -O1"}
    words = [str(word) for word in command]
    with log.open("a") as file:
        file.write(f"\n$ {shlex.join(words)}\n")
        file.flush()
        program = shutil.which(words[0], path=path) or words[0]
        done = subprocess.run([program, *words[1:]], cwd=folder, env=env, stdout=file, stderr=file)
    if done.returncode:
        raise CheckError(f"{shlex.join(words)[:80]}: {reason(log)}")


class Checker:
    """Checks one wheel and one source distribution in a temporary folder."""

    def __init__(self, wheel: Path, sdist: Path, folder: Path, logs: Path) -> None:
        self.wheel, self.sdist, self.folder, self.logs = wheel, sdist, folder, logs
        self.base, self.digits, self.mmcv = folder / "base", folder / "digits", {}

    def run(self, venv: Path, command: Sequence[str | Path] | str, log: str, folder: Path | None = None) -> None:
        words = shlex.split(command) if isinstance(command, str) else command
        run(words, self.logs / f"{log}.log", folder or self.folder, venv / "bin")

    def install(self, venv: Path, *requirements: str | Path, log: str) -> None:
        self.run(venv, ["python", "-m", "pip", "install", "--progress-bar", "off", *requirements], log)

    def make_base(self) -> None:
        """An environment with torch alone, whose gigabytes all others share."""
        self.run(self.base, [sys.executable, "-m", "venv", self.base], "base")
        self.install(self.base, "torch", log="base")

    def copy(self, source: Path, name: str) -> Path:
        """An environment like another, in which its files are linked; pip replaces files and never changes them."""
        target = self.folder / name
        shutil.copytree(source, target, symlinks=True, copy_function=os.link)
        return target

    def compiled_mmcv(self, stack: str) -> Path:
        """The wheel of mmcv for the torch of the base, compiled by the script that comes with the package."""
        if stack not in self.mmcv:
            log, venv = f"mmcv-{stack}", self.copy(self.base, f"mmcv-{stack}")
            pins = (ROOT / f"requirements/{stack}.txt").read_text().splitlines()
            (requirement,) = (line for line in pins if line.startswith(("mmcv==", "onedl-mmcv==")))
            self.install(venv, "-r", ROOT / "requirements/build.txt", log=log)
            self.install(venv, "--no-deps", self.wheel, log=log)
            (script,) = venv.glob("lib/python*/site-packages/mmrepmlp/.mim/tools/build_mmcv.py")
            self.run(venv, ["python", script, requirement, "--cache", CACHE], log)
            printed = (self.logs / f"{log}.log").read_text().split()
            self.mmcv[stack] = Path(printed[-1])
            shutil.rmtree(venv)
        return self.mmcv[stack]

    def write_digits(self, venv: Path, log: str) -> None:
        """The digits, by the script that comes with the package; only this needs scikit-learn."""
        if not self.digits.exists():
            venv = self.copy(venv, "with-sklearn")
            self.install(venv, "scikit-learn", log=log)
            (script,) = venv.glob("lib/python*/site-packages/mmrepmlp/.mim/tools/dataset_converters/digits.py")
            self.run(venv, ["python", script, "--out", self.digits], log)
            shutil.rmtree(venv)

    def check(self, name: str) -> None:
        """Install one of :data:`INSTALLATIONS`, and run its commands."""
        installation = INSTALLATIONS[name]
        venv, work = self.copy(self.base, f"env-{name}"), self.folder / f"work-{name}"
        try:
            if installation.mmcv:
                self.install(venv, "--no-deps", self.compiled_mmcv(installation.mmcv), log=name)
            extras = f"[{installation.extras}]" if installation.extras else ""
            self.install(venv, f"{self.wheel}{extras}", *installation.others.split(), log=name)
            self.run(venv, "python -m pip check", name)
            (work / "data").mkdir(parents=True)
            for script, text in SCRIPTS.items():
                (work / script).write_text(text)
            if any("digits" in command for command in installation.commands):
                self.write_digits(venv, name)
                (work / "data/digits").symlink_to(self.digits)
            for command in installation.commands:
                self.run(venv, command, name, work)
        finally:
            shutil.rmtree(venv, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)

    def check_resolution(self, extra: str) -> None:
        """That pip finds versions for an extra; nothing is installed."""
        self.install(self.base, "--dry-run", f"{self.wheel}[{extra}]", log=extra)

    def installed_files(self, distribution: Path) -> dict[str, str]:
        """The files that a distribution installs in the packages of an environment, and their hashes."""
        code = "import importlib.metadata as m, json; print(json.dumps({str(f): f.hash and f.hash.value"
        code += " for f in m.files('mmrepmlp') if '..' not in f.parts and f.name != 'direct_url.json'}))"
        venv = self.copy(self.base, "files")
        try:
            self.install(venv, "--no-deps", distribution, log="sdist")
            return json.loads(subprocess.check_output([venv / "bin/python", "-c", code], cwd=self.folder))
        finally:
            shutil.rmtree(venv)

    def check_sdist(self) -> None:
        """That the source distribution has what git has, and installs the files that the wheel does."""
        with tarfile.open(self.sdist) as files:
            packed = {name.partition("/")[2] for name in files.getnames() if not files.getmember(name).isdir()}
        tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
        expected = {name for name in tracked if name and not name.startswith(UNPACKED)}
        generated = {name for name in packed if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
        if wrong := sorted(expected ^ (packed - generated)):
            raise CheckError(f"the source distribution and git differ in {len(wrong)} files: {', '.join(wrong[:5])}")
        ours, theirs = self.installed_files(self.wheel), self.installed_files(self.sdist)
        if wrong := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            raise CheckError(f"it installs {len(wrong)} other files than the wheel: {', '.join(wrong[:5])}")


def find_one(folder: Path, pattern: str) -> Path:
    """The only file of a pattern."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"error: {folder} has {len(found)} files {pattern}; expected one: make dist")
    return found[0].resolve()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ["sdist", *INSTALLATIONS, *RESOLVED]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder that make dist wrote")
    parser.add_argument("--logs", type=Path, default=ROOT / "work_dirs/dist", help="folder of the logs")
    args = parser.parse_args(arguments)
    wheel, sdist = find_one(args.dist, "mmrepmlp-*.whl"), find_one(args.dist, "mmrepmlp-*.tar.gz")
    shutil.rmtree(args.logs, ignore_errors=True)
    args.logs.mkdir(parents=True)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="mmrepmlp-dist-") as folder:
        checker = Checker(wheel, sdist, Path(folder), args.logs.resolve())
        say(f"{wheel.name}; torch is installed once")
        checker.make_base()
        for name in args.only:
            started = time.monotonic()
            try:
                if name == "sdist":
                    checker.check_sdist()
                elif name in RESOLVED:
                    checker.check_resolution(name)
                else:
                    checker.check(name)
                result = "passed"
            except CheckError as error:
                failed += 1
                result = f"failed: {error}"
            say(f"{name:10} {time.monotonic() - started:4.0f} s  {result}")
    say(f"logs in {args.logs}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
