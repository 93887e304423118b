// Float matrices to every storage that halfbyte can write. Scalar, and the truth: bit for bit what the reference packages
// make.
#pragma once

#include <string_view>

#include "core/thread_pool.h"
#include "core/weight.h"

namespace halfbyte {

/// What `quantize=` and ops.quantize() accept.
struct EncodeOptions {
    std::string_view format = "nf4";  ///< "nf4", "fp4", "int8", "q8_0", "f32", "f16", "bf16"
    int block_size = 64;              ///< nf4 and fp4: 32, 64, ..., 4096
    bool double_quant = true;         ///< nf4 and fp4: scales as bytes in blocks of 256
};

/// values: float32 [rows, cols]. NF4 and FP4 follow bitsandbytes (quantize_4bit), q8_0 follows gguf; int8 has blocks of
/// int8_block(cols) columns, levels of up to 127 rounded to nearest, ties to even.
/// Errors: invalid_argument for an unknown format or a wrong block size; for int8 and q8_0, cols not a multiple of 32;
/// a NaN or infinity in `values` for the quantised formats.
Weight encode(const float* values, int64_t rows, int64_t cols, const EncodeOptions& options, ThreadPool& pool);
/// The same of a weight in another storage. A few rows at a time are decoded; the source's mapped pages are dropped behind them.
Weight encode(const Weight& weight, const EncodeOptions& options, ThreadPool& pool);

/// A float weight [in, out] as [out, in], in the storage it has.
Weight transposed(const Weight& weight, ThreadPool& pool);

}  // namespace halfbyte
