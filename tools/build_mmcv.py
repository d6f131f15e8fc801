# SPDX-License-Identifier: Apache-2.0
"""Compile mmcv for the torch of this Python, or find a wheel compiled before; print the path of the wheel.

Needs only the standard library, torch, and the packages in requirements/build.txt: it runs before others are installed.
"""

import argparse
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU
from torch.utils.cpp_extension import CUDA_HOME, ROCM_HOME  # noqa: E402

SOURCES = Path("mmcv/ops/csrc/pytorch")
UNITS = 4
# Files of a group define the same names, so no two of them can be in one compilation unit.
CLASHING = (
    ("cpu/bezier_align.cpp", "cpu/roi_align.cpp", "cpu/roi_align_rotated.cpp", "cpu/rotated_feature_align.cpp"),
    ("cpu/sparse_indice.cpp", "cpu/sparse_maxpool.cpp", "cpu/sparse_reordering.cpp"),
)
# These define macros named min and max, which break templates in files after them even when undefined.
LAST = ("psamask.cpp", "cpu/psamask.cpp")
OTHER_DEVICES = ("FORCE_CUDA", "FORCE_MLU", "FORCE_MPS", "FORCE_NPU", "FORCE_MUSA", "MMCV_WITH_DIOPI")


def say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


def for_cpu_only() -> bool:
    """Whether mmcv's setup compiles the operators only for the CPU."""
    forced = any(os.environ.get(name, "0") == "1" for name in OTHER_DEVICES)
    rocm = torch.version.hip is not None and ROCM_HOME is not None
    return not (forced or rocm or torch.cuda.is_available() or torch.backends.mps.is_available())


def cache_key(requirement: str) -> str:
    """Return everything that a compiled mmcv depends on; a cached wheel is used only if all lines are the same."""
    compiler = os.environ.get("CXX", "g++")
    gpu = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    lines = [
        requirement,
        f"python {sysconfig.get_config_var('SOABI')} {sysconfig.get_platform()} {' '.join(platform.libc_ver())}",
        f"torch {torch.__version__} cxx11abi {torch.compiled_with_cxx11_abi()}",
        f"compiler {subprocess.check_output([compiler, '--version'], text=True).splitlines()[0]}",
        f"cuda {torch.version.cuda if gpu else None} {CUDA_HOME} gpu {gpu}",
        *(f"{name} {os.environ.get(name, '')}" for name in ("CFLAGS", "TORCH_CUDA_ARCH_LIST", "MMCV_CUDA_ARGS")),
        *(f"{name} {os.environ.get(name, '')}" for name in OTHER_DEVICES),
    ]
    return "\n".join(lines) + "\n"


def pip(*arguments: str) -> list[str]:
    """Return a pip command that compiles with the installed torch.

    It does not use pip's cache, which might return a wheel for another torch.
    """
    return [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--no-cache-dir"]


def unpack(requirement: str, folder: Path) -> Path:
    """Download and unpack the source of ``name==version`` into ``folder``; return its path.

    Raises:
        subprocess.CalledProcessError: The download failed.
    """
    folder.mkdir(exist_ok=True)
    # pip also runs setup.py, which fails on Python 3.13 until it is modernized; the source is unpacked anyway.
    command = [*pip("download", "-q", "--no-binary", requirement.split("==")[0], requirement), "--no-clean"]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True)
    sources = [path.parent for path in folder.glob("pip-download-*/*/setup.py")]
    if not sources:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout + done.stderr)
    return sources[0]


def modernize(source: Path) -> None:
    """Make mmcv's setup.py work on Python 3.13 and with the C++ standard that torch's headers need."""
    headers = Path(torch.__path__[0], "include/ATen/ATen.h").read_text()
    setup = (source / "setup.py").read_text()
    if "202002L" in headers:
        setup = setup.replace("std=c++17", "std=c++20")
    # Since Python 3.13, exec no longer changes what locals() returns.
    setup = setup.replace("version_file, 'exec'))", "version_file, 'exec'), globals())")
    setup = setup.replace("locals()['__version__']", "globals()['__version__']")
    (source / "setup.py").write_text(setup)


def deal(files: dict[str, int], count: int) -> list[list[str]]:
    """Divide files among units of about the same size, without clashing files in any.

    Args:
        files: Size of each file, in bytes.
        count: Number of units, at least as many as there are files in a clashing group.

    Returns:
        Files of each unit, those of :data:`LAST` at its end.
    """
    group = {file: index for index, files_of_group in enumerate(CLASHING) for file in files_of_group}
    units: list[list[str]] = [[] for _ in range(count)]
    for file in sorted(files, key=lambda name: (name not in group, -files[name], name)):
        free = [unit for unit in units if file not in group or group[file] not in map(group.get, unit)]
        min(free, key=lambda unit: sum(files[name] for name in unit)).append(file)
    return [sorted(unit, key=lambda name: name in LAST) for unit in units]


def merge(source: Path, count: int = UNITS) -> None:
    """Replace mmcv's C++ files by a few that include them, since parsing torch's headers takes most of the time."""
    folder = source / SOURCES
    originals = folder.with_name("merged")
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in [*folder.glob("*.cpp"), *folder.glob("cpu/*.cpp")]
    }
    for file in files:
        (originals / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).rename(originals / file)
    for index, unit in enumerate(deal(files, count), 1):
        lines = ['#include "pytorch_cpp_helper.hpp"', "#include <valarray>"]
        for file in unit:
            lines += [f'#include "../merged/{file}"', "#undef min", "#undef max"]
        (folder / f"unit_{index}.cpp").write_text("\n".join(lines) + "\n")


def compile_wheel(source: Path, folder: Path) -> Path:
    """Compile a source to a wheel in ``folder``, and print a line for each compiled file.

    Raises:
        subprocess.CalledProcessError: The source does not compile; the log is in ``output``.
    """
    log, started = [], time.monotonic()
    command = pip("wheel", "-v", "-w", str(folder), str(source))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                log.append(line)
                if step := re.match(r"\s*\[(\d+/\d+)\] .* -o \S*/(\S+)\.o ", line):
                    say(f"compiled {step[1]}  {step[2]}  {time.monotonic() - started:.0f} s")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(log[-60:]))
    return next(folder.glob("*.whl"))


def build(requirement: str, folder: Path) -> Path:
    """Compile ``name==version`` in ``folder``, merged into a few units if possible."""
    if for_cpu_only():
        source = unpack(requirement, folder / "merged")
        modernize(source)
        merge(source)
        try:
            return compile_wheel(source, folder)
        except subprocess.CalledProcessError as error:
            reason = next((line.strip() for line in error.output.splitlines() if "error" in line), "no reason given")
            say(f"The merged files do not compile here ({reason}); compiling them one by one, which takes minutes.")
    source = unpack(requirement, folder / "plain")
    modernize(source)
    return compile_wheel(source, folder)


def cached_wheel(requirement: str, cache: Path) -> Path:
    """Return the compiled wheel of ``name==version`` in ``cache``; build it first if it is missing."""
    key = cache_key(requirement)
    target = cache / f"{requirement.replace('==', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if wheels := list(target.glob("*.whl")):
        say(f"using {wheels[0]}")
        return wheels[0]
    cache.mkdir(parents=True, exist_ok=True)
    for leftover in cache.glob("build.*"):  # of builds that were killed
        if time.time() - leftover.stat().st_mtime > 86400:
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build.", dir=cache) as folder:
        wheel = build(requirement, Path(folder))
        finished = Path(folder, "finished")
        finished.mkdir()
        wheel.rename(finished / wheel.name)
        (finished / "built-for.txt").write_text(key)
        shutil.rmtree(target, ignore_errors=True)
        finished.rename(target)
    return target / wheel.name


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("requirement", help="mmcv==VERSION or onedl-mmcv==VERSION")
    parser.add_argument("--cache", type=Path, required=True, help="folder for compiled wheels")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    try:
        print(cached_wheel(args.requirement, args.cache))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.output or ''}\nsetup: {args.requirement} did not build; the end of its log is above.")


if __name__ == "__main__":
    main()
