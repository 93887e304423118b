// What the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput(); it must return for every input, after an Error
// that a user can read or after none. Anything else (another exception, a sanitizer's finding, much memory, much time) is a bug.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "core/error.h"
#include "core/mapped_file.h"
#include "device/device.h"
#include "io/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

using Bytes = std::span<const uint8_t>;

/// Ends the process where `good` is false: a property that holds for every input.
void require(bool good);
/// The error names a place, is UTF-8, and is not one of halfbyte's own mistakes.
void check_error(const halfbyte::Error& error);

/// Runs body(); it may throw an Error and nothing else.
template <class F>
void run(F body) {
    try {
        body();
    } catch (const halfbyte::Error& error) {
        check_error(error);
    }
}

/// Takes what stands before the first NUL off the front of `bytes`, and the NUL: texts in front of a file.
std::string_view take_text(Bytes& bytes);
std::string_view text_of(Bytes bytes);
/// A file "input" of these bytes.
std::shared_ptr<const halfbyte::MappedFile> file_of(Bytes bytes);

/// Reads everything that a checkpoint offers: names, shapes, weights, their scales and values, metadata.
void read_all(const halfbyte::Checkpoint& checkpoint);
/// Checks the scales of a weight and decodes it.
void read_weight(const halfbyte::Weight& weight);

/// The CPU, on one thread.
halfbyte::Device& device();
/// Loads the model of a checkpoint and runs three tokens through it.
void run_model(const halfbyte::Checkpoint& checkpoint);

}  // namespace fuzz
