"""Runs a kernel: all threads of some blocks in lockstep, the group at the lowest address first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import instructions, warp
from .memory import PARAMETERS, SHARED, Global, Shared
from .parse import Instruction, Kernel

Mask = NDArray[np.bool_]
Values = NDArray[Any]

MOST_THREADS = 4096  # at a time
MOST_STEPS = 2_000_000

TYPES: dict[str, Any] = {
    **{"b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16},
    **{"b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64},
    **{"f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": np.uint16, "bf16x2": np.uint32},
    **{"f16x2": np.uint32, "b128": np.uint64},
}
BITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Threads:
    """Registers and places of all threads of the blocks first .. first + count - 1 of a grid."""

    def __init__(
        self,
        memory: Global,
        kernel: Kernel,
        parameters: bytes,
        grid: Sequence[int],
        block: Sequence[int],
        dynamic: int,
        first: int,
        count: int,
    ) -> None:
        self.memory, self.kernel = memory, kernel
        size = block[0] * block[1] * block[2]
        self.block_size, self.blocks, self.count = size, count, size * count
        linear = np.arange(self.count) % size
        self.block = np.arange(self.count) // size
        index = self.block + first
        self.registers: dict[str, Values] = {}
        self.special = {
            "%tid.x": linear % block[0],
            "%tid.y": linear // block[0] % block[1],
            "%tid.z": linear // (block[0] * block[1]),
            "%ctaid.x": index % grid[0],
            "%ctaid.y": index // grid[0] % grid[1],
            "%ctaid.z": index // (grid[0] * grid[1]),
            "%laneid": linear % 32,
        }
        for name, values in (("%ntid", block), ("%nctaid", grid)):
            for axis, value in zip("xyz", values, strict=True):
                self.special[f"{name}.{axis}"] = np.full(self.count, value)
        self.symbols: dict[str, int] = {}
        at = 0
        for name, (bytes_, align) in kernel.shared.items():
            at = (at + align - 1) // align * align
            self.symbols[name] = at
            at += bytes_
        at = (at + 15) // 16 * 16
        for name in kernel.dynamic:
            self.symbols[name] = at
        self.shared = Shared(count, at + dynamic)
        self.parameters = np.frombuffer(parameters, np.uint8)
        place = 0
        self.parameter_places: dict[str, int] = {}
        for parameter in kernel.parameters:
            place = (place + parameter.align - 1) // parameter.align * parameter.align
            self.parameter_places[parameter.name] = place
            place += parameter.size
        # cp.async: groups that each thread has committed; its copies on their way: threads, group, target, bytes.
        self.committed = np.zeros(self.count, np.int64)
        self.copies: list[tuple[Values, Values, Values, Values]] = []
        self.pc = np.zeros(self.count, np.int64)
        self.waiting = np.zeros(self.count, bool)
        self.voted = np.zeros(self.count, bool)  # at a barrier that asks
        self.asked: dict[str, Mask] = {}

    # --- operands

    def read(self, operand: str, kind: str) -> Values:
        if kind == "pred":
            return self.registers[operand].astype(bool)
        dtype = np.dtype(TYPES[kind])
        if operand.startswith("{"):  # a vector packed into one register, the low part first
            parts = [part.strip() for part in operand[1:-1].split(",")]
            width = dtype.itemsize // len(parts)
            bits = np.zeros(self.count, np.uint64)
            for i, part in enumerate(parts):
                bits |= self.read(part, f"b{8 * width}").astype(np.uint64) << np.uint64(8 * width * i)
            return bits.astype(BITS[dtype.itemsize]).view(dtype)
        if operand.startswith("-%"):
            raise NotImplementedError(f"a negative register: {operand}")
        if operand in self.registers:
            register = self.registers[operand]
            if register.dtype.itemsize == dtype.itemsize:
                return register.view(dtype)
            return register.astype(BITS[dtype.itemsize]).view(dtype)
        return self._constant(operand, dtype)

    def _constant(self, operand: str, dtype: np.dtype[Any]) -> Values:
        if operand in self.special:
            return self.special[operand].astype(BITS[dtype.itemsize]).view(dtype)
        if operand in self.symbols:
            value = self.symbols[operand]
        elif operand in self.parameter_places:
            value = PARAMETERS + self.parameter_places[operand]
        elif operand[:2] in ("0f", "0F", "0d", "0D"):
            value = int(operand[2:], 16)
        else:
            value = int(operand.rstrip("U"), 0)
        bits = np.uint64(value & (2**64 - 1))
        return np.full(self.count, bits).astype(BITS[dtype.itemsize]).view(dtype)

    def write(self, operand: str, kind: str, value: Values, mask: Mask) -> None:
        if operand == "_":
            return
        if kind == "pred":
            bits: Values = np.asarray(value, bool)
        else:
            dtype = np.dtype(TYPES[kind])
            bits = np.ascontiguousarray(np.broadcast_to(np.asarray(value).astype(dtype, copy=False), self.count))
            bits = bits.view(BITS[dtype.itemsize])
        if operand.startswith("{"):
            parts = [part.strip() for part in operand[1:-1].split(",")]
            width = bits.dtype.itemsize * 8 // len(parts)
            for i, part in enumerate(parts):
                piece = (bits.astype(np.uint64) >> np.uint64(width * i)) & np.uint64(2**width - 1)
                self.write(part, f"b{width}", piece, mask)
            return
        old = self.registers.get(operand)
        if old is None or old.dtype != bits.dtype:
            if old is not None and bits.dtype != bool:
                bits = bits.astype(old.dtype)  # into a wider register
            else:
                self.registers[operand] = bits.copy()
                return
        self.registers[operand] = np.where(mask, bits, old)

    def address(self, operand: str) -> NDArray[np.int64]:
        """Of "[%rd1+16]" or "[name]"."""
        base, _, offset = operand.strip("[]").partition("+")
        base = base.strip()
        if base.startswith("%"):
            wide = self.registers[base].dtype.itemsize == 8
            start = self.read(base, "s64" if wide else "u32").astype(np.int64)
        elif base in self.symbols:
            start = np.full(self.count, self.symbols[base], np.int64)
        elif base in self.parameter_places:
            start = np.full(self.count, PARAMETERS + self.parameter_places[base], np.int64)
        else:
            start = np.full(self.count, int(base, 0), np.int64)
        return start + int(offset or "0", 0)

    # --- running

    def run(self) -> None:
        end = len(self.kernel.code)
        steps = 0
        with np.errstate(all="ignore"):
            while True:
                alive = self.pc < end
                if not alive.any():
                    return
                able = alive & ~self.waiting
                if not able.any():
                    raise RuntimeError("deadlock: every thread waits at a barrier")
                here = int(self.pc[able].min())
                group = able & (self.pc == here)
                others = self.pc[able & ~group]
                stop = int(others.min()) if len(others) else end
                steps += self._straight(group, here, stop)
                if steps > MOST_STEPS:
                    raise RuntimeError("too many steps: an endless loop?")
                self._release()

    def _straight(self, group: Mask, here: int, stop: int) -> int:
        """Runs the group up to its next jump, barrier or the place where others stand."""
        steps = 0
        while here < stop:
            instruction = self.kernel.code[here]
            mask = group
            if instruction.guard is not None:
                value = self.read(instruction.guard, "pred")
                mask = group & (~value if instruction.negated else value)
            here += 1
            steps += 1
            name = instruction.op[0]
            if name == "bra":
                self.pc[group] = here
                self.pc[mask] = self.kernel.labels[instruction.operands[0]]
                return steps
            if name in ("ret", "exit"):
                self.pc[group] = here
                self.pc[mask] = len(self.kernel.code)
                return steps
            if name in ("bar", "barrier"):
                self.pc[group] = here
                self._arrive(instruction, mask)
                return steps
            if mask.any():
                try:
                    if name in warp.NAMES:
                        warp.execute(self, instruction, mask)
                    else:
                        instructions.execute(self, instruction, mask)
                except Exception as error:
                    raise RuntimeError(f"{instruction.text!r}: {error}") from error
        self.pc[group] = here
        return steps

    def _arrive(self, instruction: Instruction, mask: Mask) -> None:
        red = instruction.op[1] == "red"
        if instruction.operands[1 if red else 0] != "0" or len(instruction.operands) != (3 if red else 1):
            raise NotImplementedError(f"a barrier of some threads: {instruction.text}")
        self.waiting |= mask
        if red:
            target, source = instruction.operands[0], instruction.operands[-1]
            negated = source.startswith("!")
            value = self.read(source.lstrip("!"), "pred")
            self.voted = np.where(mask, ~value if negated else value, self.voted)
            self.asked[target] = self.asked.get(target, np.zeros(self.count, bool)) | mask

    def _release(self) -> None:
        """Lets go of blocks whose living threads all wait."""
        if not self.waiting.any():
            return
        shape = (self.blocks, self.block_size)
        alive = (self.pc < len(self.kernel.code)).reshape(shape)
        waiting = self.waiting.reshape(shape)
        done = (waiting | ~alive).all(1) & waiting.any(1)
        if not done.any():
            return
        released = np.repeat(done, self.block_size) & self.waiting
        for target, mask in list(self.asked.items()):
            votes = (self.voted & mask).reshape(shape).any(1)
            self.write(target, "pred", np.repeat(votes, self.block_size), released & mask)
            self.asked[target] = mask & ~released
            if not self.asked[target].any():
                del self.asked[target]
        self.waiting &= ~released


def launch(
    memory: Global, kernel: Kernel, parameters: bytes, grid: Sequence[int], block: Sequence[int], dynamic: int
) -> None:
    """`parameters`: as PTX lays them out, one behind the other by their alignments."""
    size, blocks = block[0] * block[1] * block[2], grid[0] * grid[1] * grid[2]
    together = max(1, MOST_THREADS // size)
    for first in range(0, blocks, together):
        count = min(together, blocks - first)
        Threads(memory, kernel, parameters, grid, block, dynamic, first, count).run()


__all__ = ["PARAMETERS", "SHARED", "Threads", "launch"]
