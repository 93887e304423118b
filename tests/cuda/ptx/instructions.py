"""What single-thread instructions do. Floats are computed as IEEE 754 says it; approximations exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .memory import PARAMETERS, SHARED, gather, scatter

if TYPE_CHECKING:
    from .machine import Mask, Threads
    from .parse import Instruction

Values = NDArray[Any]

COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: ~(a == b),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
NOTHING = {"membar", "fence", "prefetch", "nanosleep", "discard", "applypriority"}


def to_bf16(x: Values) -> Values:
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def from_bf16(bits: Values) -> Values:
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def execute(t: Threads, instruction: Instruction, mask: Mask) -> None:
    op, operands = instruction.op, instruction.operands
    name, kind = op[0], op[-1]
    if name in NOTHING:
        return
    handler = HANDLERS.get(name)
    if handler is None:
        raise NotImplementedError("an instruction that the interpreter does not know")
    handler(t, op, operands, kind, mask)


def _arithmetic(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    name = op[0]
    a, b = t.read(o[1], kind), t.read(o[2], kind)
    if name in ("add", "sub", "min", "max"):
        if kind[0] == "f":
            value = {"add": np.add, "sub": np.subtract, "min": np.fmin, "max": np.fmax}[name](a, b)
            if name in ("min", "max"):  # of zeros, the one with the sign
                both_zero = (a == 0) & (b == 0)
                sign = np.signbit(a) | np.signbit(b) if name == "min" else np.signbit(a) & np.signbit(b)
                value = np.where(both_zero, np.where(sign, -0.0, 0.0), value)
        else:
            value = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}[name](a, b)
    elif name == "div":
        value = a / b if kind[0] == "f" else _divide(a, b)
    elif name == "rem":
        value = a - _divide(a, b) * b
    else:
        value = np.copysign(b, a)  # copysign d, a, b: the magnitude of b with the sign of a
    t.write(o[0], kind, value, mask)


def _divide(a: Values, b: Values) -> Values:
    """Of integers, towards zero; by zero: anything."""
    b = np.where(b == 0, 1, b).astype(a.dtype)
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _multiply(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    a, b = t.read(o[1], kind), t.read(o[2], kind)
    adds = op[0] == "mad"
    if kind[0] == "f":
        t.write(o[0], kind, a * b, mask)
    elif op[1] == "wide":
        wide = kind[0] + str(2 * int(kind[1:]))
        from .machine import TYPES

        value = a.astype(TYPES[wide]) * b.astype(TYPES[wide])
        t.write(o[0], wide, value + t.read(o[3], wide) if adds else value, mask)
    elif op[1] == "hi":
        if kind[1:] != "32":
            raise NotImplementedError("mul.hi of 64 bits")
        product = a.astype(np.int64 if kind[0] == "s" else np.uint64) * b.astype(
            np.int64 if kind[0] == "s" else np.uint64
        )
        value = (product >> (np.int64(32) if kind[0] == "s" else np.uint64(32))).astype(a.dtype)
        t.write(o[0], kind, value + t.read(o[3], kind) if adds else value, mask)
    else:
        value = a * b
        t.write(o[0], kind, value + t.read(o[3], kind) if adds else value, mask)


def _fma(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    a, b, c = (t.read(x, kind) for x in o[1:4])
    if kind == "f64":
        value = (a.astype(np.longdouble) * b + c).astype(np.float64)
    else:
        value = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)
        if "rm" in op:  # down: exp() splits its argument so
            exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
            value = np.where(value.astype(np.float64) > exact, np.nextafter(value, np.float32(-np.inf)), value)
    if "sat" in op:
        value = np.clip(value, 0, 1)
    t.write(o[0], kind, value, mask)


def _unary(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    name, a = op[0], t.read(o[1], kind)
    if name == "neg":
        value = -a if kind[0] == "f" else (~a + a.dtype.type(1))
    elif name == "not":
        value = ~a
    elif name == "abs":
        value = np.abs(a)
    elif name in ("ex2", "lg2", "sin", "cos", "sqrt", "rsqrt", "rcp", "tanh"):
        wide = a.astype(np.float64)
        value = {
            "ex2": np.exp2,
            "lg2": np.log2,
            "sin": np.sin,
            "cos": np.cos,
            "sqrt": np.sqrt,
            "rsqrt": lambda x: 1 / np.sqrt(x),
            "rcp": lambda x: 1 / x,
            "tanh": np.tanh,
        }[name](wide).astype(a.dtype)
        if "ftz" in op:
            value = np.where(np.abs(value) < 2.0**-126, np.copysign(0, value), value)
    elif name == "popc":
        value = np.array([bin(int(x)).count("1") for x in a])
        kind = "u32"
    elif name == "clz":
        bits = int(kind[1:])
        value = np.array([bits - int(x).bit_length() for x in a])
        kind = "u32"
    else:  # brev
        bits = int(kind[1:])
        value = np.array([int(format(int(x), f"0{bits}b")[::-1], 2) for x in a], dtype=np.uint64)
    t.write(o[0], kind, value, mask)


def _predicates(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    def value(operand: str) -> Values:
        negated = operand.startswith("!")
        found = t.read(operand.lstrip("!"), "pred")
        return ~found if negated else found

    if op[0] == "not":
        t.write(o[0], "pred", ~value(o[1]), mask)
    elif op[0] == "mov":
        constant = {"0": False, "1": True, "-1": True}.get(o[1])
        t.write(o[0], "pred", value(o[1]) if constant is None else np.full(t.count, constant), mask)
    else:
        t.write(o[0], "pred", BITWISE[op[0]](value(o[1]), value(o[2])), mask)


def _bits(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    if kind == "pred":
        return _predicates(t, op, o, kind, mask)
    if op[0] == "not":
        return _unary(t, op, o, kind, mask)
    return t.write(o[0], kind, BITWISE[op[0]](t.read(o[1], kind), t.read(o[2], kind)), mask)


def _shift(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    a, by = t.read(o[1], kind), t.read(o[2], "u32").astype(np.int64)
    bits = a.dtype.itemsize * 8
    inside = np.minimum(by, bits - 1).astype(a.dtype)
    value = a << inside if op[0] == "shl" else a >> inside
    if op[0] == "shl" or a.dtype.kind == "u":
        value = np.where(by >= bits, 0, value)
    t.write(o[0], kind, value, mask)


def _funnel(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    low, high, by = (t.read(x, "u32").astype(np.uint64) for x in o[1:4])
    by = by & np.uint64(31) if "wrap" in op else np.minimum(by, np.uint64(32))
    both = high << np.uint64(32) | low
    value = both << by >> np.uint64(32) if op[1] == "l" else both >> by
    t.write(o[0], "b32", (value & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)


def _lop3(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    a, b, c = (t.read(x, "b32") for x in o[1:4])
    table, value = int(o[4], 0), np.zeros(t.count, np.uint32)
    for i in range(8):
        if table >> i & 1:
            value |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    t.write(o[0], "b32", value, mask)


def _prmt(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    if op[-1] != "b32":
        raise NotImplementedError("a mode of prmt")
    a, b, selector = (t.read(x, "b32").astype(np.uint64) for x in o[1:4])
    both, value = b << np.uint64(32) | a, np.zeros(t.count, np.uint64)
    for i in range(4):
        pick = selector >> np.uint64(4 * i) & np.uint64(15)
        byte = both >> ((pick & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        value |= np.where(pick & np.uint64(8), sign, byte) << np.uint64(8 * i)
    t.write(o[0], "b32", value.astype(np.uint32), mask)


def _bit_field(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    bits = int(kind[1:])
    if op[0] == "bfi":
        a, b = t.read(o[1], kind).astype(np.uint64), t.read(o[2], kind).astype(np.uint64)
        at, length = (t.read(x, "u32").astype(np.uint64) & np.uint64(255) for x in o[3:5])
        ones = np.where(length >= 64, ~np.uint64(0), (np.uint64(1) << (length & np.uint64(63))) - np.uint64(1))
        field = ones << at
        t.write(o[0], kind, (b & ~field | a << at & field).astype(t.read(o[1], kind).dtype), mask)
        return
    a = t.read(o[1], "b" + kind[1:]).astype(np.uint64)
    at, length = (t.read(x, "u32").astype(np.int64) & 255 for x in o[2:4])
    ones = (np.uint64(1) << np.minimum(length, 63).astype(np.uint64)) - np.uint64(1)
    value = a >> np.minimum(at, 63).astype(np.uint64) & ones
    if kind[0] == "s":
        top = np.minimum(at + length - 1, bits - 1).astype(np.uint64)
        negative = (a >> top & np.uint64(1)).astype(bool) & (length > 0)
        value = np.where(negative, value | ~ones, value)
    t.write(o[0], "b" + kind[1:], value, mask)


def _select(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    t.write(o[0], kind, np.where(t.read(o[3], "pred"), t.read(o[1], kind), t.read(o[2], kind)), mask)


def _compare(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    value = COMPARISONS[op[1]](t.read(o[1], kind), t.read(o[2], kind))
    if op[2] in BITWISE:
        negated = o[3].startswith("!")
        other = t.read(o[3].lstrip("!"), "pred")
        value = BITWISE[op[2]](value, ~other if negated else other)
    targets = o[0].split("|")
    t.write(targets[0], "pred", value, mask)
    if len(targets) > 1:
        t.write(targets[1], "pred", ~value, mask)


def _move(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    if kind == "pred":
        return _predicates(t, op, o, kind, mask)
    return t.write(o[0], kind, t.read(o[1], kind), mask)


def _convert_address(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    value = t.read(o[1], "s64" if kind == "u64" else "u32").astype(np.int64)
    if op[1] == "to":
        value = value - {"shared": SHARED, "param": PARAMETERS}.get(op[2], 0)
    elif op[1] in ("shared", "param"):
        value = value + {"shared": SHARED, "param": 0}[op[1]]  # parameters have generic addresses from the start
    t.write(o[0], kind, value, mask)


def _packed(t: Threads, to: str, o: tuple[str, ...], source: str) -> tuple[str, Values] | None:
    """Conversions to and from types that numpy does not have: (kind, bits); None: another."""
    if to == "bf16x2":
        return "b32", to_bf16(t.read(o[1], "f32")).astype(np.uint32) << 16 | to_bf16(t.read(o[2], "f32"))
    if to == "f16x2":
        high, low = (t.read(x, "f32").astype(np.float16).view(np.uint16).astype(np.uint32) for x in o[1:3])
        return "b32", high << 16 | low
    if to == "bf16":
        return "b16", to_bf16(t.read(o[1], "f32"))
    if source == "bf16":
        return "f32", from_bf16(t.read(o[1], "b16"))
    if to == "tf32":
        bits = t.read(o[1], "b32").astype(np.uint64)
        return "b32", (bits + np.uint64(0x1000) & np.uint64(0xFFFFE000)).astype(np.uint32)
    return None


def _convert(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    from .machine import TYPES

    to, source = op[-2], op[-1]
    packed = _packed(t, to, o, source)
    if packed is not None:
        return t.write(o[0], packed[0], packed[1], mask)
    value = t.read(o[1], source)
    if to[0] == "f":
        if value.dtype.kind == "f" and any(mode in op for mode in ("rni", "rzi", "rmi", "rpi")):
            value = _rounded(value, op)
        elif value.dtype.kind != "f":
            value = value.astype(np.float64) if to != "f64" else value
        value = value.astype(TYPES[to])
        if "sat" in op:
            value = np.where(np.isnan(value), 0, np.clip(value, 0, 1))
    elif value.dtype.kind == "f":
        limits = np.iinfo(TYPES[to])
        whole = _rounded(value.astype(np.float64), op)
        inside = np.clip(np.nan_to_num(whole, nan=0.0), float(limits.min), float(limits.max))
        value = np.where(inside >= float(limits.max), limits.max, inside.astype(TYPES[to]))
    return t.write(o[0], to, value.astype(TYPES[to]), mask)


def _rounded(value: Values, op: tuple[str, ...]) -> Values:
    if "rni" in op:
        return np.rint(value)
    if "rmi" in op:
        return np.floor(value)
    if "rpi" in op:
        return np.ceil(value)
    return np.trunc(value)


# --- memory -------------------------------------------------------------------------------------------------------


def _space(t: Threads, op: tuple[str, ...], addresses: Values) -> tuple[str, Values]:
    """Which memory, and where in it."""
    for space in ("global", "shared", "param", "local"):
        if space in op:
            return space, addresses - (PARAMETERS if space == "param" else 0)
    if len(addresses) and (addresses >= PARAMETERS).all():
        return "param", addresses - PARAMETERS
    if len(addresses) and (addresses >= SHARED).all():
        return "shared", addresses - SHARED
    return "global", addresses


def _load_store(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    from .machine import TYPES

    loads = op[0] in ("ld", "ldu")
    data, where = (o[0], o[1]) if loads else (o[1], o[0])
    parts = [part.strip() for part in data[1:-1].split(",")] if data.startswith("{") else [data]
    dtype = np.dtype(TYPES[kind])
    size = dtype.itemsize * len(parts)
    space, addresses = _space(t, op, t.address(where)[mask])
    if space == "param":
        memory, offsets = t.parameters, addresses
        if (offsets < 0).any() or (offsets + size > len(memory)).any():
            raise IndexError("parameters: out of bounds")
    elif space == "shared":
        memory, offsets = t.shared.memory, t.shared.offsets(addresses, size, t.block[mask])
    elif space == "global":
        memory, offsets = t.memory.memory, t.memory.offsets(addresses, size)
    else:
        raise NotImplementedError("local memory")
    if loads:
        raw = gather(memory, offsets, size)
        for i, part in enumerate(parts):
            value = np.zeros(t.count, dtype)
            value[mask] = (
                np.ascontiguousarray(raw[:, i * dtype.itemsize : (i + 1) * dtype.itemsize]).view(dtype).ravel()
            )
            if part.startswith("%rd") and dtype.itemsize < 8:  # widened
                value = value.astype(np.int64 if dtype.kind == "i" else np.uint64)
                t.write(part, "b64", value.view(np.uint64), mask)
            elif part.startswith("%r") and dtype.itemsize < 4:
                value = value.astype(np.int32 if dtype.kind == "i" else np.uint32)
                t.write(part, "b32", value.view(np.uint32), mask)
            elif part.startswith("%rs") and dtype.itemsize < 2:
                value = value.astype(np.int16 if dtype.kind == "i" else np.uint16)
                t.write(part, "b16", value.view(np.uint16), mask)
            else:
                t.write(part, kind, value, mask)
        return
    columns = [
        np.ascontiguousarray(t.read(part, kind)[mask]).view(np.uint8).reshape(-1, dtype.itemsize) for part in parts
    ]
    scatter(memory, offsets, np.concatenate(columns, 1))


def _async_copy(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    """cp.async: the target is poison until the thread that copies has waited for the group."""
    if op[2] == "commit_group":
        t.committed[mask] += 1
        return
    if op[2] in ("wait_group", "wait_all"):
        everything = op[2] == "wait_all"
        _copies_arrive(t, mask, t.committed + 1 if everything else t.committed - int(o[0], 0))
        return
    size = int(o[2], 0)
    valid = t.read(o[3], "u32") if len(o) > 3 else np.full(t.count, size)
    if ((valid[mask] != size) & (valid[mask] != 0)).any():
        raise NotImplementedError("cp.async of a part")
    to = t.shared.offsets(t.address(o[0])[mask], size, t.block[mask])
    values = np.zeros((len(to), size), np.uint8)
    full = valid[mask] == size
    if full.any():
        offsets = t.memory.offsets(t.address(o[1])[mask][full], size)
        values[full] = gather(t.memory.memory, offsets, size)
    scatter(t.shared.memory, to, np.full_like(values, 0xFF))
    threads = np.flatnonzero(mask)
    t.copies.append((threads, t.committed[threads], to, values))


def _copies_arrive(t: Threads, mask: Mask, before: Values) -> None:
    """Write what threads of the mask have copied in groups with a number below before[thread]."""
    left = []
    for threads, group, to, values in t.copies:
        here = mask[threads] & (group < before[threads])
        scatter(t.shared.memory, to[here], values[here])
        if not here.all():
            left.append((threads[~here], group[~here], to[~here], values[~here]))
    t.copies = left


def _atomic(t: Threads, op: tuple[str, ...], o: tuple[str, ...], kind: str, mask: Mask) -> None:
    """One thread after the other."""
    from .machine import TYPES

    target, where, *values = (None, *o) if op[0] == "red" else o
    dtype = np.dtype(TYPES[kind])
    space, addresses = _space(t, op, t.address(where)[mask])
    if space == "shared":
        memory, offsets = t.shared.memory, t.shared.offsets(addresses, dtype.itemsize, t.block[mask])
    else:
        memory, offsets = t.memory.memory, t.memory.offsets(addresses, dtype.itemsize)
    operands = [t.read(value, kind)[mask] for value in values]
    old = np.zeros(len(offsets), dtype)
    name = next(part for part in op if part in ATOMICS)
    for i, at in enumerate(offsets):
        cell = memory[at : at + dtype.itemsize].view(dtype)
        old[i] = cell[0]
        cell[0] = ATOMICS[name](cell[0], *(operand[i] for operand in operands))
    if target is not None:
        value = np.zeros(t.count, dtype)
        value[mask] = old
        t.write(target, kind, value, mask)


ATOMICS: dict[str, Any] = {
    "add": lambda old, v: old + v,
    "max": max,
    "min": min,
    "or": lambda old, v: old | v,
    "and": lambda old, v: old & v,
    "xor": lambda old, v: old ^ v,
    "exch": lambda old, v: v,
    "cas": lambda old, expected, v: v if old == expected else old,
    "inc": lambda old, v: 0 if old >= v else old + 1,
}
HANDLERS: dict[str, Any] = {
    **dict.fromkeys(("add", "sub", "min", "max", "div", "rem", "copysign"), _arithmetic),
    **dict.fromkeys(("mul", "mad"), _multiply),
    "fma": _fma,
    **dict.fromkeys(
        ("neg", "abs", "ex2", "lg2", "sin", "cos", "sqrt", "rsqrt", "rcp", "tanh", "popc", "clz", "brev"), _unary
    ),
    **dict.fromkeys(("and", "or", "xor", "not"), _bits),
    **dict.fromkeys(("shl", "shr"), _shift),
    "shf": _funnel,
    "lop3": _lop3,
    "prmt": _prmt,
    **dict.fromkeys(("bfi", "bfe"), _bit_field),
    "selp": _select,
    "setp": _compare,
    "mov": _move,
    "cvta": _convert_address,
    "cvt": _convert,
    **dict.fromkeys(("ld", "ldu", "st"), _load_store),
    "cp": _async_copy,
    **dict.fromkeys(("atom", "red"), _atomic),
}
