"""The forms of instructions that the interpreter does as they say: a modifier it does not know is no form of these.

"cvt.rz" run as "cvt.rn" would hide the very mistake that this interpreter is there to show.
"""

from __future__ import annotations

import re

_SPACE = r"(?:\.(?:global|shared|param))?"
_TYPE = r"\.[busf](?:8|16|32|64)"
_INT = r"\.[us](?:16|32|64)"
_BITS = r"\.[bus](?:16|32|64)"
_ROUND_TO_INT = r"\.r[nzmp]i"

_FORMS = [
    # Arithmetic. No .sat but where it is named, no .ftz, no rounding but to nearest.
    rf"(?:add|sub)(?:{_INT}|(?:\.rn)?\.f(?:32|64))",
    rf"(?:min|max)(?:{_INT}|\.f(?:32|64))",
    rf"div(?:{_INT}|(?:\.rn|\.approx|\.full)\.f32|\.rn\.f64)",
    rf"rem{_INT}",
    r"copysign\.f(?:32|64)",
    rf"mul(?:\.lo{_INT}|\.hi\.[us]32|\.wide\.[us](?:16|32)|(?:\.rn)?\.f(?:32|64))",
    rf"mad(?:\.lo{_INT}|\.hi\.[us]32|\.wide\.[us](?:16|32))",
    r"fma(?:\.r[nm](?:\.sat)?\.f32|\.rn\.f64)",
    r"(?:neg|abs)(?:\.s(?:16|32|64)|\.f(?:32|64))",
    r"(?:ex2|rcp|rsqrt|sqrt|lg2|sin|cos)\.approx(?:\.ftz)?\.f32",
    r"tanh\.approx\.f32",
    r"(?:rcp|sqrt)\.rn\.f(?:32|64)",
    r"(?:popc|clz|brev)\.b(?:32|64)",
    # Bits.
    r"(?:and|or|xor|not)\.(?:pred|b(?:16|32|64))",
    rf"(?:shl\.b(?:16|32|64)|shr{_BITS})",
    r"shf\.[lr]\.(?:wrap|clamp)\.b32",
    r"lop3\.b32",
    r"prmt\.b32",
    r"bfi\.b(?:32|64)",
    r"bfe\.[us]32",
    # Choices and moves.
    rf"selp(?:{_BITS}|\.f(?:32|64))",
    r"setp\.(?:eq|ne|[lg][te]|(?:eq|ne|[lg][te])u|num|nan)(?:\.(?:and|or|xor))?\.(?:[bus](?:16|32|64)|f(?:32|64))",
    r"mov\.(?:pred|[bus](?:16|32|64)|f(?:32|64))",
    r"cvta(?:\.to)?\.(?:global|shared|param)\.u(?:32|64)",
    # Conversions.
    r"cvt\.rn\.(?:bf16x2|f16x2|bf16|f16)\.f32",
    r"cvt\.rna\.tf32\.f32",
    r"cvt\.f32\.(?:f16|bf16)",
    r"cvt\.f64\.f(?:16|32)|cvt\.rn\.f32\.f64",
    rf"cvt(?:{_ROUND_TO_INT})(?:\.f32\.f32|\.f64\.f64|\.[us](?:8|16|32|64)\.f(?:16|32|64))",
    r"cvt\.sat\.f32\.f32",
    r"cvt\.rn\.f(?:16|32|64)\.[us](?:8|16|32|64)",
    r"cvt\.[us](?:8|16|32|64)\.[us](?:8|16|32|64)",
    # Memory. Caches and prefetches change no result.
    rf"ld(?:\.volatile)?{_SPACE}(?:\.nc)?(?:\.c[agsv]|\.lu)?(?:\.L1_\w+)?(?:\.L2_\w+)?(?:\.v[24])?{_TYPE}",
    rf"st(?:\.volatile)?{_SPACE}(?:\.c[gs]|\.w[bt])?(?:\.L1_\w+)?(?:\.v[24])?{_TYPE}",
    r"(?:atom|red)(?:\.relaxed\.gpu)?(?:\.global|\.shared)?\.(?:add|min|max|and|or|xor|exch|cas|inc)\.[bus](?:32|64)",
    r"cp\.async\.c[ag]\.shared\.global(?:\.L2_\w+)?",
    r"cp\.async\.(?:commit_group|wait_group|wait_all)",
    r"membar\.(?:cta|gl|sys)|fence\.\w+\.(?:cta|gpu|sys)|prefetch\.global\.L[12]|nanosleep\.u32",
    # What threads do together, and where they go.
    r"shfl\.sync\.(?:bfly|idx|up|down)\.b32",
    r"vote\.sync\.(?:any|all)\.pred|vote\.sync\.ballot\.b32",
    r"ldmatrix\.sync\.aligned\.m8n8\.x[124](?:\.trans)?\.shared\.b16",
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(?:bf16\.bf16|f16\.f16)\.f32",
    r"bar\.sync|barrier\.sync(?:\.aligned)?|bar\.red\.or\.pred",
    r"bra(?:\.uni)?|ret|exit",
]
_KNOWN = re.compile("|".join(_FORMS))


def known(op: tuple[str, ...]) -> bool:
    """Whether an instruction, "cvt.rn.bf16x2.f32" at its dots, is one of those that are run as they say."""
    return _KNOWN.fullmatch(".".join(op)) is not None
