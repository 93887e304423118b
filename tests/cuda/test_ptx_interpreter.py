"""The interpreter of PTX by itself: it stops at what it does not know, and sees what a GPU would not forgive."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from ptx.machine import launch
from ptx.memory import Global
from ptx.parse import parse


def run_text(body: str, threads: int = 32) -> np.ndarray[Any, Any]:
    """The 32-bit words that a kernel wrote to p, one for each thread; behind them lie as many, counting up from 100."""
    head = ".visible .entry k(.param .u64 p) { .shared .align 16 .b8 room[512]; ld.param.u64 %rd1, [p]; "
    kernel = parse(
        head
        + "mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; cvt.u64.u32 %rd2, %r2; add.s64 %rd3, %rd1, %rd2; "
        + body
        + " ret; }"
    )["k"]
    address = 1 << 20
    words = np.concatenate([np.zeros(threads, np.uint32), np.arange(100, 100 + threads, dtype=np.uint32)])
    memory = Global({address: words.view(np.uint8)})
    launch(memory, kernel, address.to_bytes(8, "little"), [1, 1, 1], [threads, 1, 1], 0)
    return memory.piece(address, 4 * threads).view(np.uint32)


@pytest.mark.parametrize(
    "instruction",
    [
        "cvt.rz.bf16x2.f32 %r3, %f1, %f2;",
        "cvt.rn.relu.bf16x2.f32 %r3, %f1, %f2;",
        "add.sat.s32 %r3, %r1, %r2;",
        "mul.ftz.f32 %f3, %f1, %f2;",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32 {%f1}, {%r1}, {%r2}, {%f1};",
        "atom.global.add.f32 %f1, [%rd3], %f2;",
        "st.local.u32 [%rd3], %r1;",
        "invented.u32 %r1, %r2;",
    ],
)
def test_an_unknown_form_stops(instruction: str) -> None:
    with pytest.raises(NotImplementedError, match=re.escape(instruction.split(" ", maxsplit=1)[0])):
        run_text(instruction)


@pytest.mark.parametrize(("waits", "arrived"), [("0", True), ("1", False), (None, False)])
def test_a_copy_is_there_once_it_was_waited_for(waits: str | None, arrived: bool) -> None:
    wait = f"cp.async.wait_group {waits}; " if waits else ""
    copy = "mov.u32 %r3, room; add.s32 %r4, %r3, %r2; cp.async.ca.shared.global [%r4], [%rd3+128], 4; "
    got = run_text(copy + "cp.async.commit_group; " + wait + "ld.shared.u32 %r5, [%r4]; st.global.u32 [%rd3], %r5;")
    np.testing.assert_array_equal(got, np.arange(100, 132) if arrived else np.full(32, 0xFFFFFFFF))


@pytest.mark.parametrize(
    ("access", "error"),
    [
        ("ld.global.u32 %r5, [%rd3+256];", "out of bounds"),
        ("ld.global.u32 %r5, [%rd3+2];", "misaligned"),
        ("ld.shared.u32 %r5, [%r2+512];", "out of bounds"),
        ("ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r2];", "misaligned"),
        ("bar.sync 1;", "a barrier of some threads"),
    ],
)
def test_a_wrong_access_stops(access: str, error: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=error):
        run_text(access)
