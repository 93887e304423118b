// A weight matrix that knows its storage. Immutable; cheap to copy; keeps the bytes it points at alive.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/dtype.h"

namespace halfbyte {

class Storage;

/// Bytes of one part of a weight (codes, scales, ...), in a mapped file or in memory that `owner` keeps.
struct Plane {
    const void* data = nullptr;
    size_t bytes = 0;
    std::shared_ptr<const void> owner;
    bool mapped = false;  ///< pages of a read-only file mapping: they can be dropped and come back by themselves

    template <class T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
    explicit operator bool() const { return data != nullptr; }
};

/// [rows, cols] = [out features, in features]. What the planes and the numbers below mean is told by `storage` alone.
struct Weight {
    static constexpr int kMaxPlanes = 5;

    int64_t rows = 0;
    int64_t cols = 0;
    const Storage* storage = nullptr;
    std::array<Plane, kMaxPlanes> planes;
    int32_t block_size = 0;         ///< Elements that share a scale; 0 where the storage has none.
    int32_t nested_block_size = 0;  ///< Scales that share a second scale; 0: scales are plain.
    float nested_offset = 0;        ///< Added to every second-level scale.

    explicit operator bool() const { return storage != nullptr; }
    int64_t size() const { return rows * cols; }
    size_t bytes() const {
        size_t total = 0;
        for (const Plane& plane : planes) total += plane.bytes;
        return total;
    }
    double bits_per_weight() const { return size() == 0 ? 0.0 : 8.0 * double(bytes()) / double(size()); }
};

/// The part [first, last) of `of` of a mapped plane need not stay in memory, since a copy of it has been made; it is read again
/// from the file if somebody asks. Does nothing for other planes, and to pages that are shared with what lies beside it.
void drop_pages(const Plane& plane, int64_t first, int64_t last, int64_t of);

/// A plane over memory that the plane itself owns: `bytes` zeroed bytes, 64-byte aligned; `data` is writable until shared.
Plane allocate_plane(size_t bytes);

}  // namespace halfbyte
