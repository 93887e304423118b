"""Sizes, versions, generated lists and public headers."""

import importlib.metadata
import os
import re
import shutil
import subprocess

import pytest
from source_tree import CSRC, ROOT, found, relative, sources

from halfbyte import _core

# Files past this length are two ideas, unless the reason stands here.
LONGEST = 500
LONG_FILES = {}


def source_files():
    python = [path for folder in ("python", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    return [*sources(), *sources(ROOT / "tests"), *python]


def test_no_file_is_too_long():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    too_long = {name: lines for name, lines in lengths.items() if lines > LONGEST and name not in LONG_FILES}
    assert not too_long
    assert not [name for name in LONG_FILES if lengths.get(name, 0) <= LONGEST], "no longer long: take it off the list"


def test_no_path_of_somebodys_machine():
    places = r"(?<![\w.~\-])/(?:work|root|home|Users)/\w|\.\./shared\b"
    checked = [*source_files(), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tools").glob("*.sh")]
    this_file = "tests/repo/test_files.py"
    assert not [
        f"{relative(path)}:{line}"
        for path in checked
        if relative(path) != this_file
        for line in found(places, path.read_text(encoding="utf-8"))
    ]


def test_versions_agree():
    def version_in(name, pattern):
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert match, f"{name}: no version"
        return match.group(1)

    version = version_in("pyproject.toml", r'^version = "([^"]+)"')
    assert version_in("CMakeLists.txt", r"^project\(halfbyte VERSION (\S+)") == version
    assert version_in("CHANGELOG.md", r"^## \[?([\d.]+)") == version
    assert _core.__version__ == version
    assert {found.version for found in importlib.metadata.distributions(name="halfbyte")} <= {version}


def test_every_architecture_of_models_is_in_the_generated_list():
    files = {
        path.stem
        for path in (CSRC / "models").glob("*.cpp")
        if re.search(r"^extern const Architecture k\w+Architecture", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert files == set(_core.architectures())
    assert {"llama", "gpt2", "bert"} <= files


def compiler(program):
    command = os.environ.get("CC" if program == "gcc" else "CXX", program)
    assert shutil.which(command), f"{command} is needed: apt-get install {program} (12 or newer)"
    return command


PUBLIC_HEADERS = sorted((CSRC / "include" / "halfbyte").iterdir())
COMPILERS = [("gcc", "c11", "c", ".h"), ("g++", "c++11", "cpp", ".h"), ("g++", "c++17", "cpp", ".hpp")]


@pytest.mark.parametrize(
    ("path", "program", "standard", "suffix"),
    [
        pytest.param(path, program, standard, suffix, id=f"{path.name}-{standard}")
        for path in PUBLIC_HEADERS
        for program, standard, suffix, header in COMPILERS
        if path.suffix == header
    ],
)
def test_public_headers_stand_alone(path, program, standard, suffix, tmp_path):
    source = tmp_path / f"alone.{suffix}"
    # Twice: the include guard works.
    source.write_text(f"#include <halfbyte/{path.name}>\n#include <halfbyte/{path.name}>\n")
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{CSRC / 'include'}"]
    done = subprocess.run([compiler(program), *flags, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
