"""The text of a PTX module: its kernels, their parameters, shared memory, and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .forms import known

ALIGNED_TYPES = {
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "b64": 8,
    "u64": 8,
}


@dataclass(frozen=True)
class Instruction:
    guard: str | None  # a predicate register
    negated: bool
    op: tuple[str, ...]  # "ld.global.f32" at its dots
    operands: tuple[str, ...]
    text: str


@dataclass
class Parameter:
    name: str
    size: int
    align: int


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)  # static arrays: bytes, alignment
    dynamic: list[str] = field(default_factory=list)  # names of the dynamic one
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def split_operands(text: str) -> tuple[str, ...]:
    """At commas outside of braces and brackets."""
    parts = [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text)]
    return tuple(part for part in parts if part)


def _parameters(text: str) -> list[Parameter]:
    found = []
    pattern = r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr[^,]*?\s)?(\w+)(?:\[(\d+)\])?\s*(?:,|$)"
    for align, kind, name, count in re.findall(pattern, text.strip()):
        unit = ALIGNED_TYPES[kind]
        found.append(Parameter(name, unit * int(count or 1), int(align or unit)))
    return found


def _shared(text: str) -> tuple[str, int, int]:
    match = re.search(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?", text)
    assert match is not None, text
    align, kind, name, count = match.groups()
    unit = ALIGNED_TYPES[kind]
    return name, unit * int(count or 1), int(align or unit)


def _body(kernel: Kernel, text: str) -> None:
    statement = ""
    for letter in text:
        if letter in "{}" and not statement.strip():
            continue  # a scope, not an operand
        if letter == ":" and re.fullmatch(r"\s*[\w$]+", statement):
            kernel.labels[statement.strip()] = len(kernel.code)
            statement = ""
        elif letter == ";":
            _statement(kernel, statement.strip())
            statement = ""
        else:
            statement += letter


def _statement(kernel: Kernel, text: str) -> None:
    if text.startswith(".shared"):
        name, size, align = _shared(text)
        kernel.shared[name] = size, align
        return
    if text.startswith("."):
        if text.startswith(".local"):
            raise NotImplementedError(f"local memory: {text}")
        return
    match = re.fullmatch(r"(?:@(!?)(%?\w+)\s+)?([\w.:]+)\s*(.*)", text, re.DOTALL)
    assert match is not None, text
    negated, guard, op, operands = match.groups()
    parts = tuple(op.replace("::", "_").split("."))
    if not known(parts):
        raise NotImplementedError(f"a form that the interpreter does not know: {' '.join(text.split())}")
    kernel.code.append(Instruction(guard, negated == "!", parts, split_operands(operands), " ".join(text.split())))


def parse(ptx: str) -> dict[str, Kernel]:
    """Kernels by their (mangled) names."""
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.DOTALL)
    dynamic = re.findall(r"\.extern\s+\.shared[^;]*?\s(\w+)\[\]\s*;", ptx)
    first = ptx.find(".entry")
    module_shared = [_shared(m) for m in re.findall(r"^\s*(\.shared[^;]*);", ptx[: max(first, 0)], re.MULTILINE)]
    kernels = {}
    for head in re.finditer(r"\.entry\s+(\w+)\s*\(([^)]*)\)[^{]*\{", ptx):
        depth, end = 1, head.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(ptx[end], 0)
            end += 1
        kernel = Kernel(head[1], _parameters(" ".join(head[2].split())))
        kernel.dynamic = dynamic
        kernel.shared |= {name: (size, align) for name, size, align in module_shared}
        _body(kernel, ptx[head.end() : end - 1])
        kernels[kernel.name] = kernel
    return kernels
