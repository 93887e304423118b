"""What the object files export.

A function that several object files may define (an inline function, a template of the standard library) is a weak
symbol, and the linker keeps any one of its copies. Were one compiled for AVX-512 kept, other processors would crash
in it. So what is compiled with the flags of an instruction set defines no weak symbol at all, and nothing outside its
own namespace.
"""

import os
import platform
import re
import subprocess
import sys

import pytest

from halfbyte import _core


@pytest.fixture(scope="module")
def objects(build):
    """{instruction set: its object files}, up to date."""
    folders = sorted((build.folder / "CMakeFiles").glob("halfbyte_cpu_*.dir"))
    build.make(*(folder.name.removesuffix(".dir") for folder in folders))
    return {
        folder.name.removeprefix("halfbyte_cpu_").removesuffix(".dir"): sorted(folder.rglob("*.o"))
        for folder in folders
    }


def defined(path):
    """[(type, name)] of the symbols that an object file defines: T t D d ... as nm writes them."""
    lines = subprocess.run(["nm", "--defined-only", "-C", str(path)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[0-9a-f]+ (\S) (.+)$", lines, re.MULTILINE)


def test_the_build_has_the_instruction_sets_of_the_module(objects):
    assert set(objects) >= set(_core.isas())
    assert all(objects.values())


def test_no_weak_symbol_in_an_instruction_set(objects):
    weak = [
        f"{isa}: {path.name}: {kind} {name}"
        for isa, paths in objects.items()
        for path in paths
        for kind, name in defined(path)
        if kind in "WwVvu"
    ]
    assert not weak


def test_an_instruction_set_exports_only_its_own_namespace(objects):
    strangers = [
        f"{path.name}: {name}"
        for isa, paths in objects.items()
        for path in paths
        for kind, name in defined(path)
        if kind.isupper() and f"halfbyte::cpu::{isa}::" not in name
    ]
    assert not strangers


# The instruction that multiplies integers in each set, and what none of its files may hold: a newer set's.
PRODUCTS = {
    "scalar": (None, r"%ymm|%zmm|vpdp"),
    "avx2": (r"\tvpmaddwd .*%ymm", r"%zmm|vpdp"),
    "avx_vnni": (r"\{vex\} vpdpwssd .*%ymm", r"%zmm|\tvpdp"),
    "avx512bw": (r"\tvpmaddwd .*%zmm", r"vpdp"),
    "avx512": (r"\tvpdpwssd .*%zmm", r"\{vex\}"),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instructions of x86-64")
@pytest.mark.parametrize("isa", PRODUCTS)
def test_a_set_multiplies_with_its_own_instruction(objects, isa):
    """Two sets may share a vocabulary and the very bits of their results; their objects tell them apart."""
    wanted, foreign = PRODUCTS[isa]
    code = "".join(
        subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
        ).stdout
        for path in objects[isa]
    )
    assert code
    assert wanted is None or re.search(wanted, code)
    assert not re.search(foreign, code)


def test_a_weak_symbol_would_be_seen(tmp_path):
    source = tmp_path / "weak.cpp"
    source.write_text("template <class T> T twice(T x) { return x + x; }\ntemplate int twice(int);\n")
    subprocess.run(["g++", "-c", str(source), "-o", str(tmp_path / "weak.o")], check=True)
    assert [kind for kind, name in defined(tmp_path / "weak.o") if "twice" in name] == ["W"]


def of_the_module(*command):
    return subprocess.run([*command, _core.__file__], capture_output=True, text=True, check=True).stdout


def test_the_module_needs_system_libraries_alone():
    """No path of the machine that built it, and nothing that a machine without a compiler lacks."""
    dynamic = of_the_module("readelf", "-d")
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    needed = re.findall(r"NEEDED.*\[([\w+\-]+)\.so", dynamic)
    assert set(needed) <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_the_module_exports_its_entry_alone():
    """Nothing for another extension module, built with another libstdc++ or json library, to collide with."""
    assert re.findall(r"^[0-9a-f]+ \S (.+)$", of_the_module("nm", "-D", "--defined-only"), re.MULTILINE) == [
        "PyInit__core"
    ]


def test_the_package_imports_without_a_path_to_any_program():
    done = subprocess.run(
        [sys.executable, "-c", "import halfbyte; print(halfbyte.__version__)"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/nonexistent", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == _core.__version__
