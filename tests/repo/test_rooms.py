"""The rooms of csrc/ and the direction of the arrows between them, as docs/map.md draws them."""

from pathlib import Path

import pytest
from source_tree import CSRC, code, found, includes, relative, sources, texts

# Each room, and those that it may include.
ARROWS = {
    "core": set(),
    "storage": {"core"},
    "io": {"core", "storage"},
    "device": {"core", "storage"},
    "cpu": {"core", "storage", "device"},
    "cuda": {"core", "storage", "device"},
    "nn": {"core", "device"},
    "models": {"core", "io", "device", "nn"},
    "runtime": {"core", "storage", "io", "device", "nn", "models"},
    "bindings": {"core", "storage", "io", "device", "nn", "models", "runtime", "halfbyte"},
    "include": {"halfbyte"},
}
# A weight is encoded, reordered or tied in one place of models/, which treats every format alike.
EXCEPTIONS = {("csrc/models/loader.cpp", "storage")}

ROOMS = sorted(path.name for path in CSRC.iterdir() if path.is_dir())


def room_of(include: str, path: Path) -> str:
    """The room of an included file; a name without a folder is a neighbour or an instruction set's vocabulary."""
    first = include.partition("/")[0]
    return first if "/" in include else path.relative_to(CSRC).parts[0]


def is_architecture(path: Path) -> bool:
    return bool(found(r"^extern const Architecture k\w+Architecture", path.read_text(encoding="utf-8")))


def test_every_room_has_its_arrows():
    assert set(ROOMS) <= set(ARROWS)
    assert {"core", "storage", "io", "device", "cpu", "nn", "models", "runtime", "bindings"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_includes_only_what_it_may(room):
    allowed = ARROWS[room] | {room}
    wrong = [
        f"{relative(path)} includes {include}"
        for path in sources(CSRC / room)
        for include in includes(path)
        if room_of(include, path) not in allowed and (relative(path), room_of(include, path)) not in EXCEPTIONS
    ]
    assert not wrong


def test_nothing_reaches_into_a_device():
    wrong = [
        f"{relative(path)} includes {include}"
        for path in sources()
        for include in includes(path)
        if room_of(include, path) in {"cpu", "cuda"} and path.relative_to(CSRC).parts[0] != room_of(include, path)
    ]
    assert not wrong


def test_the_test_would_see_a_wrong_include(tmp_path):
    path = tmp_path / "x.cpp"
    path.write_text(
        '#include "cpu/simd.h"  // why\n// #include "io/config.h"\n/* #include "a/b.h" */\n#include <vector>\n'
    )
    assert includes(path) == ["cpu/simd.h"]


# What a forward pass must not know. Comments may: they say where a thing comes from.
FORMATS = r"(?i)\b(?:nf4|fp4|q\d_\d|q\d_k|iq4_nl|mxfp4|int8|codebook4|int8blocks|bnb4?|bitsandbytes)\w*"
KINDS = r"\bStorageKind\b|\bcase DType::|\bswitch \(.*dtype"
# GPT-2's files hold float matrices the other way round, and quantised ones not.
KINDS_ALLOWED = {"csrc/models/loader.cpp"}


@pytest.mark.parametrize("path", [*sources(CSRC / "nn"), *sources(CSRC / "models")], ids=relative)
def test_networks_know_no_format_and_no_device(path):
    assert not found(FORMATS, texts(path)) + found("(?i)cuda", texts(path))
    assert relative(path) in KINDS_ALLOWED or not found(KINDS, code(path))


@pytest.mark.parametrize("path", [p for p in sources(CSRC / "models") if is_architecture(p)], ids=relative)
def test_an_architecture_is_written_on_layers(path):
    assert {room_of(include, path) for include in includes(path)} <= {"models", "nn", "core"}


ENDS_THE_PROGRAM = r"(?<![\w.>])(?:std::|::)?(?:abort|_?exit|_Exit|quick_exit|terminate|longjmp)\s*\("
PRINTS = (
    r"(?<!\w)(?:v?f?printf|f?puts|putchar|putc|fputc|perror|fwrite)\s*\("
    r"|std::(?:cout|cerr|clog)\b|<(?:iostream|print)>"
)
ASSERTS = r"(?<!\w)assert\s*\(|<cassert>|<assert\.h>|\b__builtin_trap\b"
NEVER = f"{ENDS_THE_PROGRAM}|{PRINTS}|{ASSERTS}"


@pytest.mark.parametrize("path", sources(), ids=relative)
def test_the_library_never_ends_the_program_nor_prints(path):
    assert not found(NEVER, code(path))


WRONG = """\
abort();
  std::abort();
::exit(1);
printf("x");
std::fprintf(f, "x");
std::cerr << x;
assert(x);
#include <iostream>
std::terminate();
"""
RIGHT = """\
snprintf(text, 9, "x");
static_assert(x);
// abort()
pool.exit(1);
fail(c, "printf(");
"""


def test_the_patterns_find_what_they_are_for(tmp_path):
    path = tmp_path / "x.cpp"
    path.write_text(WRONG + RIGHT)
    assert len(found(NEVER, code(path))) == len(WRONG.splitlines())
