// What holds for every storage: decoding a whole weight, and putting rows in another order.
#include "storage/storage.h"

#include <cstring>

#include "core/error.h"
#include "storage/bnb4.h"

namespace halfbyte {

void decode(const Weight& weight, float* out) {
    if (weight.size() == 0) return;  // 2^62 rows of nothing cost a file nothing either
    for (int64_t row = 0; row < weight.rows; row++) weight.storage->decode_row(weight, row, out + row * weight.cols);
}

Weight reorder_rows(const Weight& weight, std::span<const int64_t> order) {
    for (const int64_t row : order) {
        if (row < 0 || row >= weight.rows) {
            fail(ErrorCode::invalid_argument, "reorder_rows: row ", row, " of a weight with ", weight.rows, " rows");
        }
    }
    if (weight.storage == &nf4_storage() || weight.storage == &fp4_storage())
        return storage::bnb4_reorder_rows(weight, order);
    if (!weight.storage->planes_are_rows()) {
        fail(ErrorCode::unsupported, "rows of a ", weight.storage->name(), " weight cannot be put in another order");
    }
    Weight result = weight;
    result.rows = int64_t(order.size());
    for (size_t p = 0; p < weight.planes.size(); p++) {
        if (!weight.planes[p]) continue;
        const size_t row_bytes = weight.rows == 0 ? 0 : weight.planes[p].bytes / size_t(weight.rows);
        result.planes[p] = allocate_plane(order.size() * row_bytes);
        auto* to = static_cast<uint8_t*>(const_cast<void*>(result.planes[p].data));
        for (const int64_t row : order) {
            std::memcpy(to, weight.planes[p].as<uint8_t>() + size_t(row) * row_bytes, row_bytes);
            to += row_bytes;
        }
    }
    return result;
}

}  // namespace halfbyte
