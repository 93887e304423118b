// Weights of several planes in a GGUF file, as halfbyte writes them (docs/formats.md): every plane is an ordinary tensor, and one
// JSON text in the metadata says which of them make a weight.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/weight.h"
#include "io/gguf.h"

namespace halfbyte {

/// One plane: its place in the weight, the end of its tensor's name, and ggml's number of its type.
struct CombinedPart {
    int plane;
    const char* suffix;
    uint32_t type;
};

/// The planes of a storage, and the storage itself; empty for one that files of halfbyte do not hold.
std::vector<CombinedPart> combined_parts(const std::string& storage, bool nested, const Storage*& found);

struct CombinedWeight {
    Weight weight;                   ///< validated
    std::vector<int64_t> shape;      ///< [out, in]
    std::vector<std::string> parts;  ///< the tensors of its planes
};

/// By name; empty for files of other tools. Errors: corrupt (the JSON, a plane that is missing or of another type or size),
/// unsupported (a version or a storage of a later halfbyte).
std::map<std::string, CombinedWeight, std::less<>> combined_weights(const GgufFile& file);

}  // namespace halfbyte
