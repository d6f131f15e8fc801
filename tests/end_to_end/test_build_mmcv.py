# SPDX-License-Identifier: Apache-2.0
"""How the set-up compiles mmcv, tried on small sources in mmcv's layout."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("build_mmcv", ROOT / "tools/build_mmcv.py")
build_mmcv = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_mmcv)

CLASHING = [file for group in build_mmcv.CLASHING for file in group]
SETUP = """
def get_version():
    version_file = 'version.py'
    with open(version_file, encoding='utf-8') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']
flags = ['-std=c++17']
"""


@pytest.fixture
def source(tmp_path) -> Path:
    """Files that define the same names, macros called min and max, and one that uses std::min."""
    folder = tmp_path / "mmcv-1.0"
    files = {name: f"struct S{index} {{}};" for index, group in enumerate(build_mmcv.CLASHING) for name in group}
    files |= {
        name: f"#define {macro}(a, b) 0\nint f_{macro}();" for name, macro in zip(build_mmcv.LAST, ("min", "max"))
    }
    files |= {
        f"{name}.cpp": f"inline int {name}(int x) {{ return std::min(x, std::max(x, 1)); }}" for name in "abcdefgh"
    }
    for name, text in files.items():
        path = folder / build_mmcv.SOURCES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#include "pytorch_cpp_helper.hpp"\n{text}\n')
    common = folder / build_mmcv.SOURCES / "../common"
    common.mkdir()
    (common / "pytorch_cpp_helper.hpp").write_text("#pragma once\n#include <algorithm>\n")
    (folder / "setup.py").write_text(SETUP)
    (folder / "version.py").write_text("__version__ = '1.0'\n")
    return folder


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}\.cpp", fullmatch=True), st.integers(1, 60000)), st.integers(4, 9))
def test_units_hold_each_file_once_and_none_that_clash(others, count):
    files = others | dict.fromkeys([*CLASHING, *build_mmcv.LAST], 9000)
    units = build_mmcv.deal(files, count)
    assert sorted(file for unit in units for file in unit) == sorted(files) and len(units) == count
    for unit in units:
        assert all(len(set(unit) & set(group)) <= 1 for group in build_mmcv.CLASHING)
        assert not any(file in build_mmcv.LAST for file in unit[: -len(build_mmcv.LAST)])
        assert unit == sorted(unit, key=lambda file: file in build_mmcv.LAST)
    sizes = [sum(files[file] for file in unit) for unit in units]
    assert max(sizes) - min(sizes) <= max(files.values()) + 9000 * len(CLASHING)


def test_merged_files_compile(source):
    build_mmcv.merge(source)
    units = sorted((source / build_mmcv.SOURCES).rglob("*.cpp"))
    assert [unit.name for unit in units] == [f"unit_{index}.cpp" for index in range(1, build_mmcv.UNITS + 1)]
    for unit in units:
        compiler = ["g++", "-fsyntax-only", "-I", str(source / build_mmcv.SOURCES / "../common"), str(unit)]
        assert subprocess.run(compiler, capture_output=True, text=True).stderr == ""


def test_the_version_is_read_on_any_python(source, monkeypatch):
    """From Python 3.13 on, ``locals()`` is a snapshot that exec does not change."""
    build_mmcv.modernize(source)
    monkeypatch.chdir(source)
    text = (source / "setup.py").read_text()
    assert "locals()" not in text
    names: dict = {}
    exec(text, names)
    assert names["get_version"]() == "1.0"


@pytest.mark.parametrize("headers, flag", [("#if __cplusplus < 202002L", "-std=c++20"), ("201703L", "-std=c++17")])
def test_the_standard_is_the_one_that_torch_needs(source, tmp_path, monkeypatch, headers, flag):
    (tmp_path / "include/ATen").mkdir(parents=True)
    (tmp_path / "include/ATen/ATen.h").write_text(headers)
    monkeypatch.setattr(build_mmcv.torch, "__path__", [str(tmp_path)])
    build_mmcv.modernize(source)
    assert f"flags = ['{flag}']" in (source / "setup.py").read_text()


@pytest.fixture
def compiled(source, monkeypatch):
    """Records which files would be compiled; what is in ``fails`` does not compile."""
    attempts, fails = [], set()

    def unpack(requirement: str, folder: Path) -> Path:
        return Path(shutil.copytree(source, folder))

    def compile_wheel(tree: Path, folder: Path) -> Path:
        kind = "merged" if (tree / build_mmcv.SOURCES / "unit_1.cpp").exists() else "plain"
        attempts.append((kind, sorted(path.name for path in (tree / build_mmcv.SOURCES).rglob("*.cpp"))))
        if kind in fails:
            raise subprocess.CalledProcessError(1, "pip", "error: no such type")
        wheel = folder / "mmcv-1.0-py3-none-any.whl"
        wheel.write_text(kind)
        return wheel

    monkeypatch.setattr(build_mmcv, "unpack", unpack)
    monkeypatch.setattr(build_mmcv, "compile_wheel", compile_wheel)
    for name in build_mmcv.OTHER_DEVICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build_mmcv.torch.cuda, "is_available", lambda: False)
    return attempts, fails


def test_a_wheel_is_compiled_once(compiled, tmp_path, capsys):
    attempts, _ = compiled
    first = build_mmcv.cached_wheel("mmcv==1.0", tmp_path / "cache")
    again = build_mmcv.cached_wheel("mmcv==1.0", tmp_path / "cache")
    assert first == again and first.read_text() == "merged" and [kind for kind, _ in attempts] == ["merged"]
    assert "using" in capsys.readouterr().err
    assert sorted(path.name for path in first.parent.iterdir()) == ["built-for.txt", first.name]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.parent.name]


def test_another_torch_gets_a_wheel_of_its_own(compiled, tmp_path, monkeypatch):
    first = build_mmcv.cached_wheel("mmcv==1.0", tmp_path / "cache")
    monkeypatch.setattr(build_mmcv.torch, "__version__", "2.99.0")
    assert build_mmcv.cached_wheel("mmcv==1.0", tmp_path / "cache") != first
    assert len(compiled[0]) == 2


def test_where_merged_files_do_not_compile_the_plain_ones_are(compiled, source, tmp_path, capsys):
    attempts, fails = compiled
    plain = sorted(path.name for path in (source / build_mmcv.SOURCES).rglob("*.cpp"))
    fails.add("merged")
    assert build_mmcv.cached_wheel("mmcv==1.0", tmp_path / "cache").read_text() == "plain"
    assert [kind for kind, _ in attempts] == ["merged", "plain"] and attempts[1][1] == plain
    said = capsys.readouterr().err
    assert "do not compile here (error: no such type); compiling them one by one" in said


def test_a_failed_build_leaves_nothing_and_shows_the_log(compiled, tmp_path):
    compiled[1].update(("merged", "plain"))
    with pytest.raises(SystemExit, match="(?s)error: no such type.*mmcv==1.0 did not build"):
        build_mmcv.main(["mmcv==1.0", "--cache", str(tmp_path / "cache")])
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", build_mmcv.OTHER_DEVICES)
def test_kernels_of_other_devices_compile_as_they_are(compiled, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert build_mmcv.cached_wheel("mmcv==1.0", tmp_path / "cache").read_text() == "plain"
