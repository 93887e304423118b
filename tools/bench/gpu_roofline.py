"""What the CUDA kernels should reach, from the machine code that was recorded and the figures of three GPUs.

    python tools/bench/gpu_roofline.py            # prints docs/performance-cuda.md
    python tools/bench/gpu_roofline.py --write    # writes it

Nothing here was measured: a kernel's main loop (tests/cuda/machine_code.json) is counted in issue slots, wavefronts of
the load/store unit and cycles of the tensor cores for what it does, and the slowest of them is set against the memory.
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


@dataclass(frozen=True)
class Gpu:
    """Figures of the makers' data sheets; per multiprocessor and cycle where it says so."""

    name: str
    code: str
    multiprocessors: int
    clock: float  # boost, Hz
    bandwidth: float  # bytes/s
    tensor: float  # bf16 products with float32 sums, FLOP/s, dense
    registers: int = 65536
    shared: int = 0  # bytes

    @property
    def bytes_per_cycle(self) -> float:
        """Of memory, for one multiprocessor."""
        return self.bandwidth / self.multiprocessors / self.clock

    @property
    def products_per_cycle(self) -> float:
        """Of the tensor cores of one multiprocessor."""
        return self.tensor / 2 / self.multiprocessors / self.clock


GPUS = (
    Gpu("A100 80 GB SXM", "sm_80", 108, 1.41e9, 2.039e12, 312e12, shared=164 << 10),
    Gpu("H100 SXM", "sm_90", 132, 1.83e9, 3.35e12, 989.4e12, shared=228 << 10),
    Gpu("RTX 5090", "sm_120", 170, 2.407e9, 1.792e12, 209.5e12, shared=100 << 10),
)
MMA_PRODUCTS = 16 * 8 * 16
# A request of the load/store unit in wavefronts: 32 lanes of 4 bytes are one, of 16 bytes four, ldmatrix.x4 four.
WAVEFRONTS = {"LDS.32": 1, "LDS.64": 2, "LDS.128": 4, "LDSM": 4, "LDG.128": 4, "LDGSTS": 4}
SHAPES = {
    "Llama-3.2-1B": {"layers": 16, "linear": 60_817_408, "output": 128_256 * 2048, "kv": 2 * 8 * 64, "kernels": 11},
    "Llama-3-8B": {"layers": 32, "linear": 218_103_808, "output": 128_256 * 4096, "kv": 2 * 8 * 128, "kernels": 11},
}


@dataclass(frozen=True)
class Loop:
    """A main loop in cycles of a multiprocessor whose four schedulers are full."""

    issue: float
    memory_unit: float
    tensor: float
    loaded: float  # bytes of 128-bit loads
    products: float


def loop_of(record: dict[str, dict[str, dict[str, int]]], gpu: Gpu, kernel: str) -> Loop:
    """Of one iteration of one warp; a multiprocessor runs four at a time."""
    counts = record[gpu.code][kernel]
    hmma = counts.get("loop HMMA", 0)
    return Loop(
        issue=counts["loop instructions"] / 4,
        memory_unit=sum(counts.get(f"loop {name}", 0) * cost for name, cost in WAVEFRONTS.items()),
        tensor=hmma * MMA_PRODUCTS / gpu.products_per_cycle,
        loaded=512.0 * counts.get("loop LDG.128", 0),
        products=float(hmma * MMA_PRODUCTS),
    )


def limit_of(costs: dict[str, float]) -> tuple[str, float]:
    """The dearest of them."""
    name = max(costs, key=lambda key: costs[key])
    return name, costs[name]


def reading(record: dict[str, dict[str, dict[str, int]]], gpu: Gpu, kernel: str) -> tuple[float, str]:
    """The share of the memory's rate at which a kernel that reads weights can take them, and what limits it."""
    loop = loop_of(record, gpu, kernel)
    memory = loop.loaded / (gpu.bytes_per_cycle * ATTAINABLE)
    costs = {"memory": memory, "issue slots": loop.issue, "load/store unit": loop.memory_unit, "tensor": loop.tensor}
    name, worst = limit_of(costs)
    return loop.loaded / worst / gpu.bytes_per_cycle, name


def multiplying(record: dict[str, dict[str, dict[str, int]]], gpu: Gpu, kernel: str) -> tuple[float, str]:
    """The share of the tensor cores' rate."""
    loop = loop_of(record, gpu, kernel)
    costs = {"tensor": loop.tensor, "issue slots": loop.issue, "load/store unit": loop.memory_unit}
    name, worst = limit_of(costs)
    return loop.tensor / worst, name


def occupancy(record: dict[str, dict[str, dict[str, int]]], gpu: Gpu, kernel: str, warps: int, dynamic: int) -> int:
    """Blocks of a multiprocessor."""
    counts = record[gpu.code][kernel]
    by_registers = gpu.registers // (counts["registers"] * 32 * warps)
    by_shared = gpu.shared // max(1, counts["shared"] + dynamic + 1024)
    return max(1, min(by_registers, by_shared))


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


def tokens(record: dict[str, dict[str, dict[str, int]]], gpu: Gpu, shape: str) -> tuple[float, float, float]:
    """Tokens a second: one sequence at 1,024 keys, 16 sequences, a prompt of 512."""
    of = SHAPES[shape]
    weights = (of["layers"] * of["linear"] + of["output"]) * BITS / 8
    cache = of["layers"] * of["kv"] * 1024 * 2.0
    kernels = (of["layers"] * of["kernels"] + 4) * LAUNCH
    one = weights / (gpu.bandwidth * reading(record, gpu, "gemv_exact_kernel<0, 1, 1>")[0])
    cached = cache / (gpu.bandwidth * reading(record, gpu, READERS[-2][1])[0])
    sixteen = weights / (gpu.bandwidth * reading(record, gpu, "gemv_mma_kernel<0, 1, 2>")[0])
    work = 2 * 512 * of["layers"] * of["linear"] / (gpu.tensor * multiplying(record, gpu, "gemm_kernel<0, 1, 128>")[0])
    return 1 / (one + cached + kernels), 16 / (sixteen + 16 * cached + kernels), 512 / (work + kernels)


def page() -> str:
    """The text of docs/performance-cuda.md."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines = [INTRODUCTION, "## The machines", ""]
    lines += ["| | " + " | ".join(gpu.name for gpu in GPUS) + " |", "| --- |" + " --- |" * len(GPUS)]
    facts = [
        ("multiprocessors, clock", lambda g: f"{g.multiprocessors}, {g.clock / 1e9:.2f} GHz"),
        ("memory", lambda g: f"{g.bandwidth / 1e9:,.0f} GB/s"),
        ("bf16 on tensor cores", lambda g: f"{g.tensor / 1e12:,.0f} TFLOP/s"),
        ("memory, bytes a cycle and multiprocessor", lambda g: f"{g.bytes_per_cycle:.1f}"),
        ("products a cycle and multiprocessor", lambda g: f"{g.products_per_cycle:,.0f}"),
    ]
    lines += [f"| {name} | " + " | ".join(fact(gpu) for gpu in GPUS) + " |" for name, fact in facts]
    heads = "| kernel | " + " | ".join(f"{gpu.name} | limit | blocks" for gpu in GPUS) + " |"
    rule = "| --- |" + " --- | --- | --- |" * len(GPUS)
    for title, kernels, share in (
        ("## Kernels that read: share of the memory's rate", READERS, reading),
        ("## Kernels that multiply: share of the tensor cores' rate", MULTIPLIERS, multiplying),
    ):
        lines += ["", title, "", heads, rule]
        for name, kernel, warps, dynamic in kernels:
            cells = []
            for gpu in GPUS:
                fraction, limit = share(record, gpu, kernel)
                cells.append(f"{fraction:.0%} | {limit} | {occupancy(record, gpu, kernel, warps, dynamic)}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Whole models, tokens a second", "", MODELS_TEXT, ""]
    lines += ["| model | task | " + " | ".join(gpu.name for gpu in GPUS) + " |", "| --- | --- |" + " --- |" * len(GPUS)]
    for shape in SHAPES:
        rows = [tokens(record, gpu, shape) for gpu in GPUS]
        for i, task in enumerate(("one sequence, 1,024 keys", "16 sequences, 1,024 keys each", "a prompt of 512")):
            lines.append(f"| {shape} | {task} | " + " | ".join(f"{row[i]:,.0f}" for row in rows) + " |")
    return "\n".join(lines) + "\n" + PUBLISHED


INTRODUCTION = """# CUDA kernels, on paper

Verified by emulation and inspection, not yet timed on hardware. `python tools/bench/gpu_roofline.py --write` writes
this page from the instruction counts of the recorded machine code (`tests/cuda/machine_code.json`) and the figures
below; `tools/bench/gpu.sh`, on a machine with a GPU, measures the same kernels
and writes a page beside this one.

How it is reckoned: a main loop is counted for one warp, and a multiprocessor has four schedulers that issue one
instruction a cycle each, one load/store unit that takes a wavefront of 128 bytes a cycle, and tensor cores at the
data sheet's rate. What takes longest is the limit; the rest is taken to overlap with it. Latency is not reckoned:
where one block fits a multiprocessor, a warp's own decoding stands in front of its own products, and the real figure
will be lower. A memory is taken to give 92 % of its figure (an assumption, as is 1.5 us from kernel to kernel within
a graph). Hopper's `mma.sync` may not reach the rate of `wgmma` that the data sheet states.
"""
MODELS_TEXT = """Everything NF4, double-quantised; the sum of weights at the rates above, keys and values in 16 bits,
and the launches. Norms, rope and the sampler are in the launches alone: their bytes are less than a hundredth."""
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
TFLOP/s; 170 at 2.407 GHz, 1,792 GB/s, 209.5 TFLOP/s with float32 sums).
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
