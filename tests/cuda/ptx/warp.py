"""What a warp does together: shuffles, votes, ldmatrix, mma. Fragments as in the PTX manual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .instructions import from_bf16
from .memory import gather

if TYPE_CHECKING:
    from .machine import Mask, Threads
    from .parse import Instruction

Values = NDArray[Any]
NAMES = {"shfl", "vote", "match", "redux", "ldmatrix", "mma", "activemask"}
LANES = np.arange(32)


def execute(t: Threads, instruction: Instruction, mask: Mask) -> None:
    """All 32 lanes of a warp come together, or none."""
    by_warp = mask.reshape(-1, 32)
    if not (by_warp.all(1) | ~by_warp.any(1)).all():
        raise RuntimeError("a warp's instruction with lanes missing")
    name = instruction.op[0]
    handler = {"shfl": _shuffle, "vote": _vote, "ldmatrix": _load_matrix, "mma": _mma}.get(name)
    if handler is None:
        raise NotImplementedError("an instruction that the interpreter does not know")
    handler(t, instruction.op, instruction.operands, mask)


def _warps(values: Values) -> Values:
    return values.reshape(-1, 32)


def _shuffle(t: Threads, op: tuple[str, ...], o: tuple[str, ...], mask: Mask) -> None:
    if (t.read(o[4], "s32")[mask] != -1).any():
        raise NotImplementedError("a shuffle of a part of a warp")
    values, by, clamp = _warps(t.read(o[1], "b32")), _warps(t.read(o[2], "u32")), _warps(t.read(o[3], "u32"))
    # The lower 5 bits of c are the greatest lane (up: the least), bits 8 to 12 name the segment.
    segment, limit = clamp >> 8 & 31, clamp & 31
    by = by.astype(np.int64) & 31
    least = LANES & segment
    greatest = least | (limit & ~segment & 31)
    if op[2] == "bfly":
        source = LANES ^ by
        inside = source <= greatest
    elif op[2] == "up":
        source = LANES - by
        inside = source >= greatest
    elif op[2] == "down":
        source = LANES + by
        inside = source <= greatest
    else:
        source = least | (by & ~segment & 31)
        inside = source <= greatest
    source = np.where(inside, source, LANES)
    target, _, predicate = o[0].partition("|")
    t.write(target, "b32", np.take_along_axis(values, source, 1).ravel(), mask)
    if predicate:
        t.write(predicate, "pred", inside.ravel(), mask)


def _vote(t: Threads, op: tuple[str, ...], o: tuple[str, ...], mask: Mask) -> None:
    negated = o[1].startswith("!")
    value = t.read(o[1].lstrip("!"), "pred")
    votes = _warps(~value if negated else value)
    if op[2] == "ballot":
        t.write(o[0], "b32", np.repeat((votes << LANES.astype(np.uint64)).sum(1).astype(np.uint32), 32), mask)
        return
    result = {"any": votes.any(1), "all": votes.all(1)}[op[2]]
    t.write(o[0], "pred", np.repeat(result, 32), mask)


def _load_matrix(t: Threads, op: tuple[str, ...], o: tuple[str, ...], mask: Mask) -> None:
    count = {"x1": 1, "x2": 2, "x4": 4}[next(part for part in op if part in ("x1", "x2", "x4"))]
    registers = [part.strip() for part in o[0][1:-1].split(",")]
    active = _warps(mask).any(1)
    addresses = _warps(t.address(o[1]))[active]
    rows = addresses[:, : 8 * count]
    block = _warps(t.block)[active][:, : 8 * count]
    offsets = t.shared.offsets(rows.ravel(), 16, block.ravel())
    elements = (
        gather(t.shared.memory, offsets, 16).view(np.uint16).reshape(-1, count, 8, 8)
    )  # warp, matrix, row, column
    if "trans" in op:
        elements = elements.swapaxes(2, 3)
    pairs = np.ascontiguousarray(elements).view(np.uint32)  # warp, matrix, row, pair of columns
    for i, register in enumerate(registers):
        value = np.zeros((len(active), 32), np.uint32)
        value[active] = pairs[:, i, LANES // 4, LANES % 4]
        t.write(register, "b32", value.ravel(), mask)


def _mma(t: Threads, op: tuple[str, ...], o: tuple[str, ...], mask: Mask) -> None:
    shape, kinds = op[3], op[6:]
    if shape != "m16n8k16" or kinds not in (("f32", "bf16", "bf16", "f32"), ("f32", "f16", "f16", "f32")):
        raise NotImplementedError("a shape or type of mma")
    d, a, b, c = ([part.strip() for part in operand[1:-1].split(",")] for operand in o)
    active = _warps(mask).any(1)
    warps = int(active.sum())

    def halves(register: str) -> tuple[Values, Values]:
        bits = _warps(t.read(register, "b32"))[active]
        parts = (bits & 0xFFFF).astype(np.uint16), (bits >> 16).astype(np.uint16)
        if kinds[1] == "bf16":
            return from_bf16(parts[0]).astype(np.float64), from_bf16(parts[1]).astype(np.float64)
        return parts[0].view(np.float16).astype(np.float64), parts[1].view(np.float16).astype(np.float64)

    left, right = np.zeros((warps, 16, 16)), np.zeros((warps, 16, 8))
    group, pair = LANES // 4, LANES % 4 * 2
    for i, register in enumerate(a):
        for half, values in enumerate(halves(register)):
            left[:, group + 8 * (i % 2), pair + half + 8 * (i // 2)] = values
    for i, register in enumerate(b):
        for half, values in enumerate(halves(register)):
            right[:, pair + half + 8 * i, group] = values
    # Sums in double, rounded once, as the emulator's: the hardware's order and rounding are not specified.
    product = left @ right
    for i, (target, source) in enumerate(zip(d, c, strict=True)):
        value = np.zeros((len(active), 32), np.float32)
        addend = _warps(t.read(source, "f32"))[active].astype(np.float64)
        value[active] = (product[:, group + 8 * (i // 2), pair + i % 2] + addend).astype(np.float32)
        t.write(target, "f32", value.ravel(), mask)
