"""bitsandbytes' dequantisation by its own generic implementation, whatever processor the tests run on.

Its CPU kernel for AVX-512 (bitsandbytes 0.50.2, cdequantize_blockwise_cpu_*) takes blocks for parts of rows: where a
block crosses rows it scales most weights by the wrong block's absmax. Its generic implementation, its CUDA kernels and
the encoder agree with each other that blocks run over the flattened matrix.
"""

from __future__ import annotations

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute


def dequantize_4bit(packed: torch.Tensor, state: bnb.QuantState) -> torch.Tensor:
    """[out, in] in state.dtype: float32 products of code and scale, rounded once."""
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    codes = packed.view(torch.uint8).reshape(-1)
    return _dequantize_4bit_compute(codes, absmax.float(), state.code, state.blocksize, state.shape, state.dtype)
