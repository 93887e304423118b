"""What the CUDA kernels should reach, from the machine code that was recorded and the figures of three GPUs.

    python tools/bench/gpu_roofline.py            # prints docs/performance-cuda.md
    python tools/bench/gpu_roofline.py --write    # writes it

Nothing here was measured: a kernel's main loop (tests/cuda/machine_code.json) is counted in issue slots, wavefronts of
the load/store unit and cycles of the units that compute, and the slowest of them is set against the memory.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/performance-cuda.md"
RECORD = ROOT / "tests/cuda/machine_code.json"
BITS = 4.127  # of an NF4 weight with double-quantised scales: 4 + 8 / 64 + 32 / (64 * 256)
LAUNCH = 1.5e-6  # seconds from kernel to kernel within a graph: assumed
ATTAINABLE = 0.92  # of the memory's figure that a long copy reaches: assumed, to be replaced by what gpu.sh measures

Record = dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class Gpu:
    """Figures of the makers' data sheets; lanes are of a multiprocessor, in a cycle."""

    name: str
    code: str
    multiprocessors: int
    clock: float  # boost, Hz
    bandwidth: float  # bytes/s
    tensor: float  # bf16 products with float32 sums, FLOP/s, dense
    shared: int  # bytes
    float_lanes: int  # float32 sums and products
    multiply_lanes: int  # integer products
    logic_lanes: int  # integer sums, logic, shifts, comparisons, choices
    special_lanes: int = 16  # exponentials, reciprocals, conversions between integers and floats
    registers: int = 65536

    @property
    def bytes_per_cycle(self) -> float:
        """Of memory, for one multiprocessor."""
        return self.bandwidth / self.multiprocessors / self.clock

    @property
    def products_per_cycle(self) -> float:
        """Of the tensor cores of one multiprocessor."""
        return self.tensor / 2 / self.multiprocessors / self.clock


GPUS = (
    Gpu("A100 80 GB SXM", "sm_80", 108, 1.41e9, 2.039e12, 312e12, 164 << 10, 64, 64, 64),
    Gpu("H100 SXM", "sm_90", 132, 1.83e9, 3.35e12, 989.4e12, 228 << 10, 128, 64, 64),
    Gpu("RTX 5090", "sm_120", 170, 2.407e9, 1.792e12, 209.5e12, 100 << 10, 128, 64, 64),
)
WARP = 32
MMA_PRODUCTS = 16 * 8 * 16
# A request of the load/store unit in wavefronts, free of bank conflicts (asserted by tests/cuda): 32 lanes of 4 bytes
# are one, of 16 bytes four, ldmatrix.x4 four.
WAVEFRONTS = {
    **{"LDS.32": 1, "LDS.64": 2, "LDS.128": 4, "STS.32": 1, "STS.64": 2, "STS.128": 4},
    **{"LDSM": 4, "LDG.32": 1, "LDG.64": 2, "LDG.128": 4, "LDGSTS": 4, "SHFL": 1},
}


@dataclass(frozen=True)
class Loop:
    """A main loop in cycles of a multiprocessor whose four schedulers are full."""

    cycles: dict[str, float]  # by what limits
    loaded: float  # bytes of 128-bit loads


def loop_of(record: Record, gpu: Gpu, kernel: str) -> Loop:
    """Of one iteration of one warp."""
    counts = record[gpu.code][kernel]

    def lanes(name: str) -> int:
        return WARP * counts.get(f"loop {name}", 0)

    cycles = {
        "issue slots": counts["loop instructions"] / 4,
        "load/store unit": sum(counts.get(f"loop {name}", 0) * cost for name, cost in WAVEFRONTS.items()),
        "tensor cores": counts.get("loop HMMA", 0) * MMA_PRODUCTS / gpu.products_per_cycle,
        "float unit": max(lanes("FMA") / gpu.float_lanes, lanes("IMAD") / gpu.multiply_lanes),
        "integer unit": lanes("ALU") / gpu.logic_lanes,
        "special functions": lanes("MUFU") / gpu.special_lanes,
    }
    return Loop(cycles, 512.0 * counts.get("loop LDG.128", 0))


def slowest(cycles: dict[str, float]) -> tuple[str, float]:
    """The name and the cycles of the one that takes longest."""
    name = max(cycles, key=lambda key: cycles[key])
    return name, cycles[name]


def reading(record: Record, gpu: Gpu, kernel: str) -> tuple[float, str]:
    """The share of the memory's rate at which a kernel that reads weights can take them, and what limits it."""
    loop = loop_of(record, gpu, kernel)
    name, worst = slowest({"memory": loop.loaded / (gpu.bytes_per_cycle * ATTAINABLE)} | loop.cycles)
    return loop.loaded / worst / gpu.bytes_per_cycle, name


def multiplying(record: Record, gpu: Gpu, kernel: str) -> tuple[float, str]:
    """The share of the tensor cores' rate, and what limits it."""
    loop = loop_of(record, gpu, kernel)
    name, worst = slowest(loop.cycles)
    return loop.cycles["tensor cores"] / worst, name


def occupancy(record: Record, gpu: Gpu, kernel: str, warps: int, dynamic: int) -> int:
    """Blocks of a multiprocessor."""
    counts = record[gpu.code][kernel]
    by_registers = gpu.registers // (-(-counts["registers"] // 8) * 8 * WARP * warps)
    by_shared = gpu.shared // max(1, counts["shared"] + dynamic + 1024)
    return max(1, min(by_registers, by_shared))


def filled(gpu: Gpu, blocks: int) -> float:
    """The share of the multiprocessors that have a block, on average over the rounds that `blocks` of them take."""
    rounds = -(-blocks // gpu.multiprocessors)
    return blocks / (rounds * gpu.multiprocessors)


READERS = [
    ("product, 1 row, NF4", "gemv_exact_kernel<0, 1, 1>", 8, 0),
    ("product, 2 rows, NF4", "gemv_exact_kernel<0, 1, 2>", 8, 0),
    ("product, 3 to 8 rows, NF4", "gemv_mma_kernel<0, 1, 1>", 8, 64 << 10),
    ("product, 9 to 16 rows, NF4", "gemv_mma_kernel<0, 1, 2>", 8, 64 << 10),
    ("product, 1 row, int8", "gemv_exact_kernel<1, 1, 1>", 8, 0),
    ("product, 1 row, bf16", "gemv_exact_kernel<3, 0, 1>", 8, 0),
    ("attention, 1 query, f16, heads of 64, groups of 4", "attention::decode_kernel<attention::Decode16, 8, 4>", 4, 0),
    (
        "attention, 1 query, f16, heads of 128, groups of 4",
        "attention::decode_kernel<attention::Decode16, 16, 4>",
        4,
        0,
    ),
]
MULTIPLIERS = [
    ("product, 128 rows a block, NF4", "gemm_kernel<0, 1, 128>", 4, 83968),
    ("product, 64 rows a block, NF4", "gemm_kernel<0, 1, 64>", 4, 51200),
    ("product, 32 rows a block, NF4", "gemm_kernel<0, 1, 32>", 4, 34816),
    ("product, 128 rows a block, int8", "gemm_kernel<1, 4, 128>", 4, 73728),
    ("product, 128 rows a block, bf16", "gemm_kernel<3, 0, 128>", 4, 98304),
    ("attention, prompt, f16, heads of 64", "attention::prefill_kernel<attention::OperandF16, 64, 2>", 4, 34816),
    ("attention, prompt, f16, heads of 128", "attention::prefill_kernel<attention::OperandF16, 128, 2>", 4, 69632),
]
DECODE = READERS[-1][1]


@dataclass(frozen=True)
class Prediction:
    """One command."""

    kernel: str
    bytes: float
    flop: float
    roof: float  # seconds: the memory or the tensor cores, whichever takes longer, at the data sheet's rates
    seconds: float
    limit: str


def product(record: Record, gpu: Gpu, features: int, cols: int, rows: int) -> Prediction:
    """Of a weight [features, cols] in NF4; the kernel as linear_gemv.cu and linear_gemm.cu choose it."""
    weights = features * cols * BITS / 8
    flop = 2.0 * rows * features * cols
    few = rows <= 16
    moved = weights + rows * (cols * (4 if few else 2) + 4 * features)
    roof = max(moved / gpu.bandwidth, flop / gpu.tensor)
    if few:
        groups = f"gemv_exact_kernel<0, 1, {rows}>" if rows <= 2 else f"gemv_mma_kernel<0, 1, {1 if rows <= 8 else 2}>"
        share, limit = reading(record, gpu, groups)
        return Prediction(groups, moved, flop, roof, moved / (gpu.bandwidth * share), limit)
    tile = 32 if rows <= 32 else 64 if rows <= 64 else 128
    kernel = f"gemm_kernel<0, 1, {tile}>"
    share, limit = multiplying(record, gpu, kernel)
    tiles = -(-rows // tile)
    blocks = -(-features // 128) * tiles
    splits = max(1, min(gpu.multiprocessors // blocks, cols // 64 // 8))
    work = 2.0 * tiles * tile * features * cols / (gpu.tensor * share * filled(gpu, blocks * splits))
    read = moved / (gpu.bandwidth * ATTAINABLE)
    return Prediction(kernel, moved, flop, roof, max(work, read), "memory" if read > work else limit)


def attention(record: Record, gpu: Gpu, rows: int, keys: int, heads: int, kv_heads: int, head_dim: int) -> Prediction:
    """One query, or a causal prompt of as many rows as keys; a cache of 16 bits."""
    moved = 2.0 * keys * kv_heads * head_dim * 2 + 2.0 * rows * heads * head_dim * 4
    pairs = keys if rows == 1 else rows * (rows + 1) / 2
    flop = 4.0 * pairs * heads * head_dim
    roof = max(moved / gpu.bandwidth, flop / gpu.tensor)
    if rows == 1:
        share, limit = reading(record, gpu, DECODE)
        return Prediction(DECODE, moved, flop, roof, moved / (gpu.bandwidth * share), limit)
    # As attention_prefill.cu: 128 queries a block where there are enough of them.
    tiles = 2 if -(-rows // 128) * heads >= 256 else 1
    kernel = f"attention::prefill_kernel<attention::OperandF16, {head_dim}, {tiles}>"
    share, limit = multiplying(record, gpu, kernel)
    work = flop / (gpu.tensor * share * filled(gpu, -(-rows // (64 * tiles)) * heads))
    read = moved / (gpu.bandwidth * ATTAINABLE)
    return Prediction(kernel, moved, flop, roof, max(work, read), "memory" if read > work else limit)


# Commands that only move rows: what of Llama-3-8B they are, bytes and float operations of a row, bytes whatever the
# rows, launches.
MOVERS = [
    ("embed, NF4", 4096 * BITS / 8 + 4 * 4096, 4096, 0, 1),
    ("transform_rows, RMSNorm to bf16", (4 + 2) * 4096, 4 * 4096, 4 * 4096, 1),
    ("transform_rows, SiLU gate to bf16", (4 + 4 + 2) * 14336, 5 * 14336, 0, 1),
    ("rope, queries", 8 * 4096, 3 * 4096, 4 * 64, 1),
    ("store_kv, keys, f16", (4 + 2) * 1024, 0, 0, 1),
    ("add", 12 * 4096, 4096, 0, 1),
    ("scale_columns", 8 * 4096, 4096, 4 * 4096, 1),
    ("gather_rows, scatter_columns", 8 * 4096, 0, 0, 1),
    ("pool, mean, normalised", 4 * 4096, 4096, 4 * 4096, 2),
    ("adapt, one adapter of rank 16, bf16", 4 * (4096 + 2 * 4096 + 2 * 16), 4 * 16 * 4096, 2 * 2 * 16 * 4096, 2),
    ("sample, top_k and top_p: ten passes", 10 * 4 * 128256, 10 * 2 * 128256, 0, 12),
]
# kernels: of a layer (a norm, q k v, two rope, two stores, attention, the sum over its splits or the rows on their way
# to tensor cores, o, a norm, gate and up, their product, down); OUTSIDE: a copy, embed, a norm, the output layer, and
# the sampler's twelve.
SHAPES = {
    "Llama-3.2-1B": {"layers": 16, "linear": 60_817_408, "output": 128_256 * 2048, "kv": 2 * 8 * 64, "kernels": 13},
    "Llama-3-8B": {"layers": 32, "linear": 218_103_808, "output": 128_256 * 4096, "kv": 2 * 8 * 128, "kernels": 13},
}
OUTSIDE = 16


def tokens(record: Record, gpu: Gpu, shape: str) -> tuple[float, float, float]:
    """Tokens a second: one sequence at 1,024 keys, 16 sequences, a prompt of 512."""
    of = SHAPES[shape]
    weights = (of["layers"] * of["linear"] + of["output"]) * BITS / 8
    cache = of["layers"] * of["kv"] * 1024 * 2.0
    kernels = (of["layers"] * of["kernels"] + OUTSIDE) * LAUNCH
    one = weights / (gpu.bandwidth * reading(record, gpu, "gemv_exact_kernel<0, 1, 1>")[0])
    cached = cache / (gpu.bandwidth * reading(record, gpu, DECODE)[0])
    sixteen = weights / (gpu.bandwidth * reading(record, gpu, "gemv_mma_kernel<0, 1, 2>")[0])
    work = 2 * 512 * of["layers"] * of["linear"] / (gpu.tensor * multiplying(record, gpu, "gemm_kernel<0, 1, 128>")[0])
    return 1 / (one + cached + kernels), 16 / (sixteen + 16 * cached + kernels), 512 / (work + kernels)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """In Markdown."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def machines() -> list[str]:
    """The figures that everything is reckoned with."""
    facts = [
        ("multiprocessors, clock", lambda g: f"{g.multiprocessors}, {g.clock / 1e9:.2f} GHz"),
        ("memory", lambda g: f"{g.bandwidth / 1e9:,.0f} GB/s"),
        ("bf16 on tensor cores", lambda g: f"{g.tensor / 1e12:,.0f} TFLOP/s"),
        ("of a multiprocessor in a cycle: bytes of memory", lambda g: f"{g.bytes_per_cycle:.1f}"),
        ("products on tensor cores", lambda g: f"{g.products_per_cycle:,.0f}"),
        (
            "lanes: float, integer product, logic, special",
            lambda g: f"{g.float_lanes}, {g.multiply_lanes}, {g.logic_lanes}, {g.special_lanes}",
        ),
    ]
    return table(["", *(gpu.name for gpu in GPUS)], [[name, *(fact(gpu) for gpu in GPUS)] for name, fact in facts])


def shares(record: Record, kernels: list[tuple[str, str, int, int]], multiply: bool) -> list[str]:
    """A kernel a row: the share, the limit and the blocks of a multiprocessor on each GPU."""
    heads = ["kernel"]
    for gpu in GPUS:
        heads += [gpu.name, "limit", "blocks"]
    rows = []
    for name, kernel, warps, dynamic in kernels:
        row = [name]
        for gpu in GPUS:
            fraction, limit = (multiplying if multiply else reading)(record, gpu, kernel)
            row += [f"{fraction:.0%}", limit, str(occupancy(record, gpu, kernel, warps, dynamic))]
        rows.append(row)
    return table(heads, rows)


def predictions(first: str, named: list[tuple[str, list[Prediction]]]) -> list[str]:
    """A command a row, with a prediction for each GPU."""
    heads = [first, "MB", "GFLOP"]
    for gpu in GPUS:
        heads += [f"{gpu.name}: roof, us", "predicted", "share", "limit"]
    rows = []
    for name, found in named:
        row = [name, f"{found[0].bytes / 1e6:,.1f}", f"{found[0].flop / 1e9:,.2f}"]
        for one in found:
            row += [f"{one.roof * 1e6:,.1f}", f"{one.seconds * 1e6:,.1f}", f"{one.roof / one.seconds:.0%}", one.limit]
        rows.append(row)
    return table(heads, rows)


def movers() -> list[str]:
    """Commands without a product, at the memory's rate."""
    heads = ["command", "bytes of a row", "operations of a row"]
    for gpu in GPUS:
        heads += [f"{gpu.name}: 1 row, us", "512 rows"]
    rows = []
    for name, of_row, operations, always, launches in MOVERS:
        row = [name, f"{of_row:,.0f}", f"{operations:,}"]
        for gpu in GPUS:
            for count in (1, 512):
                memory = (of_row * count + always) / (gpu.bandwidth * ATTAINABLE)
                launch = launches * LAUNCH
                row.append(f"{max(memory, launch) * 1e6:,.1f} {'launch' if launch > memory else 'memory'}")
        rows.append(row)
    return table(heads, rows)


def models(record: Record) -> list[str]:
    """Tokens a second."""
    rows = []
    for shape in SHAPES:
        found = [tokens(record, gpu, shape) for gpu in GPUS]
        for i, task in enumerate(("one sequence, 1,024 keys", "16 sequences, 1,024 keys each", "a prompt of 512")):
            rows.append([shape, task, *(f"{one[i]:,.0f}" for one in found)])
    return table(["model", "task", *(gpu.name for gpu in GPUS)], rows)


def page() -> str:
    """The text of docs/performance-cuda.md."""
    record: Record = json.loads(RECORD.read_text(encoding="utf-8"))
    row_counts = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
    products = [(f"{rows}", [product(record, gpu, 14336, 4096, rows) for gpu in GPUS]) for rows in row_counts]
    tasks = [(f"1 query, {keys:,} keys", 1, keys) for keys in (1024, 8192, 32768)]
    tasks += [(f"a prompt of {rows:,}", rows, rows) for rows in (512, 2048)]
    attentions = [(name, [attention(record, gpu, *at, 32, 8, 128) for gpu in GPUS]) for name, *at in tasks]
    sections = [
        ("The machines", "", machines()),
        ("Kernels that read: share of the memory's rate", "", shares(record, READERS, multiply=False)),
        ("Kernels that multiply: share of the tensor cores' rate", "", shares(record, MULTIPLIERS, multiply=True)),
        ("A product of Llama-3-8B, [14336, 4096] in NF4, by rows", PRODUCT_TEXT, predictions("rows", products)),
        ("Attention of Llama-3-8B, f16, one layer", ATTENTION_TEXT, predictions("task", attentions)),
        ("Everything else, at the sizes of Llama-3-8B", MOVERS_TEXT, movers()),
        ("Whole models, tokens a second", MODELS_TEXT, models(record)),
    ]
    lines = [INTRODUCTION]
    for title, text, body in sections:
        lines += [f"## {title}", "", *([text, ""] if text else []), *body, ""]
    return "\n".join(lines) + PUBLISHED


INTRODUCTION = """# CUDA kernels, on paper

Verified by emulation and inspection, not yet timed on hardware. `python tools/bench/gpu_roofline.py --write` writes
this page from the instruction counts of the recorded machine code (`tests/cuda/machine_code.json`) and the figures
below; `tools/bench/gpu.sh`, on a machine with a GPU, measures the same kernels and writes a page beside this one.

How it is reckoned: a main loop is counted for one warp, both sides of its branches. A multiprocessor has four
schedulers that issue one instruction a cycle each; one load/store unit that takes a wavefront of 128 bytes a cycle,
shuffles among them; units for float, integer and special work with the lanes in the table; and tensor cores at the
data sheet's rate. What takes longest is the limit; the rest is taken to overlap with it. So every figure is an upper
bound: latency is not reckoned, and where one block fits a multiprocessor, a warp's own decoding stands in front of its
own products. A memory is taken to give 92 % of its figure (an assumption, as is 1.5 us from kernel to kernel within a
graph). Hopper's `mma.sync` may not reach the rate of `wgmma` that the data sheet states.
"""
PRODUCT_TEXT = """Roof: the bytes at the memory's rate or the operations at the tensor cores', whichever takes
longer. Predicted: with the shares above; of products with more than 16 rows, whole tiles of rows, and the
multiprocessors that have a block. Launches are not in it."""
ATTENTION_TEXT = (
    """32 heads, 8 of keys; a prompt counts the pairs that the causal mask leaves, and no tile that it cuts."""
)
MOVERS_TEXT = """Bound by the memory where rows are many, by their launches where they are few; `gpu.sh` will tell how
far from it they are. A sample without filters leaves its passes at once."""
MODELS_TEXT = """Everything NF4, double-quantised; the sum of weights at the rates above, keys and values in 16 bits,
and the launches. Norms, rope and the sampler are in the launches alone: their bytes are less than a hundredth.
A prompt's attention is left out."""
PUBLISHED = """
## What others have published

The bar for the day hardware comes. Figures of different machines and shapes; none was measured here.

- Marlin (INT4, groups of 128, symmetric, fp16 activations): within 5 % of the 3.87 x over fp16 that the bytes allow,
  up to batch 32, on an A10 at 72k x 18k; "near-ideal" to 16 to 32 rows, and about 10 % behind fp16 from 1,024 rows
  on ([the project](https://github.com/IST-DASLab/marlin); a [summary of the
  paper](https://wentao.site/marlin_summary)). In the terms above: 95 % of the memory's rate.
- FLUTE (lookup tables, NF4 among them, groups of 128): 2 to 4 x the GEMM kernels before it below 32 rows, 1.5 to 2 x
  end to end on LLaMA-3 ([arXiv 2407.10960](https://arxiv.org/html/2407.10960v4)).
- bitsandbytes: a new family of fused 4-bit kernels, nested scales included, merged in May 2026, says up to 4 x its
  predecessors at 2 to 64 rows from Turing to Blackwell ([pull request
  1949](https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1949)); before it, `Linear4bit` took 27.7 us for
  one row where a 16-bit layer took 14.3 on an RTX 4090 ([issue
  605](https://github.com/bitsandbytes-foundation/bitsandbytes/issues/605), January 2025).
- A paper of April 2026 makes bitsandbytes' dequantisation 2.0 to 2.2 x as fast on an A100 by keeping its table in
  shared memory ([arXiv 2604.02556](https://arxiv.org/html/2604.02556v1)).

No table of these projects for the very shapes of Llama-3.2-1B or Llama-3-8B on the machines above was found;
`tools/bench/gpu.sh` times bitsandbytes beside halfbyte instead.

Data sheets:
[A100](https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf);
H100 SXM and RTX 5090 by NVIDIA's pages of the products (132 multiprocessors at up to 1.83 GHz, 3.35 TB/s, 989.4
TFLOP/s; 170 at 2.407 GHz, 1,792 GB/s, 209.5 TFLOP/s with float32 sums). Units of a multiprocessor: the table of
arithmetic throughput in NVIDIA's CUDA programming guide; which instruction belongs to which, as Nsight Compute's guide
has it. Of the RTX 5090 it is known that every lane takes either float or integer work
([an analysis](https://www.hwcooling.net/en/blackwell-geforce-rtx-5000-architecture-and-innovations-analysis/2/));
logic and shifts are taken at the rate of the generation before, half of that.
"""


def main() -> int:
    """Print the page, or write it."""
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
