#include "io/tensors.h"

#include <cstring>

#include "core/error.h"
#include "storage/storage.h"

namespace halfbyte {

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); i++) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return text + "]";
}

MatrixShape matrix_shape(const std::vector<int64_t>& shape, std::string_view where) {
    MatrixShape result{1, shape.empty() ? 1 : shape.back()};
    int64_t count = 0;
    bool overflow = false;
    for (size_t i = 0; i + 1 < shape.size(); i++) overflow |= __builtin_mul_overflow(result.rows, shape[i], &result.rows);
    if (overflow || __builtin_mul_overflow(result.rows, result.cols, &count)) {
        fail(ErrorCode::corrupt, where, ": shape ", shape_text(shape), " overflows");
    }
    return result;
}

Plane aligned(const Plane& plane, size_t alignment) {
    if (reinterpret_cast<uintptr_t>(plane.data) % alignment == 0) return plane;
    Plane copy = allocate_plane(plane.bytes);
    std::memcpy(const_cast<void*>(copy.data), plane.data, plane.bytes);
    return copy;
}

Weight float_weight(const SafetensorsEntry& entry, std::string_view where) {
    if (entry.dtype != DType::f32 && entry.dtype != DType::f16 && entry.dtype != DType::bf16) {
        fail(ErrorCode::unsupported, where, ": a weight of dtype ", name_of(entry.dtype),
             " is not supported; expected float32, float16 or bfloat16");
    }
    const MatrixShape shape = matrix_shape(entry.shape, where);
    const Plane plane = aligned(entry.bytes, size_of(entry.dtype));
    Weight weight = make_float_weight(plane.data, entry.dtype, shape.rows, shape.cols, plane.owner);
    weight.planes[0] = plane;
    weight.storage->validate(weight, where);
    return weight;
}

}  // namespace halfbyte
