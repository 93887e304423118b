// Bytes on disk -> config and named weights. Everything is memory-mapped; nothing is computed here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/weight.h"
#include "io/config.h"

namespace halfbyte {

/// An open checkpoint. Weights that it hands out keep the mapped files alive, so it may be destroyed before them.
/// After open() returns, the const methods are safe from many threads, except config().
class Checkpoint {
public:
    /// A Hugging Face folder (config.json; model.safetensors or a sharded index; float or bitsandbytes), a single
    /// .safetensors file (with config.json beside it), or a .gguf file.
    /// Errors: not_found, corrupt, unsupported (a pickle: the text says how to convert it), io.
    static std::unique_ptr<Checkpoint> open(const std::filesystem::path& path);
    virtual ~Checkpoint() = default;

    virtual std::string_view format() const = 0;  ///< "safetensors", "bitsandbytes" or "gguf"
    const std::filesystem::path& path() const { return path_; }
    virtual const Config& config() const = 0;
    /// Names of logical tensors: a bitsandbytes weight counts once, under its own name ("....q_proj.weight").
    virtual const std::vector<std::string>& names() const = 0;
    virtual bool contains(std::string_view name) const = 0;
    /// Shape in the order of the reference ([out, in] for a matrix; GGUF dimensions are turned round). Error not_found.
    virtual std::vector<int64_t> shape(std::string_view name) const = 0;
    /// The tensor as rows x cols: the last dimension is cols, the others are rows; a vector is 1 x n. Validated.
    /// Errors: not_found, corrupt, unsupported (a dtype or GGUF type that has no storage here).
    virtual Weight weight(std::string_view name) const = 0;
    /// True where tensors have their names in GGUF files ("blk.0.attn_q"), false for those of Hugging Face.
    virtual bool has_gguf_names() const { return false; }
    /// True where the rows of q and k lie as transformers has them, false for the pairs of llama.cpp (see models/llama.cpp).
    virtual bool has_reference_rows() const { return true; }
    /// GGUF: all metadata as JSON text without the arrays longer than `max_array`; folder: config.json's text.
    virtual std::string metadata_json() const = 0;

protected:
    explicit Checkpoint(std::filesystem::path path) : path_(std::move(path)) {}
    std::filesystem::path path_;
};

/// Throws unsupported with the command that converts a pickle (.bin, .pt, ...) to the safetensors file `converted`.
[[noreturn]] void fail_pickle(const std::filesystem::path& path, std::string_view converted = "model.safetensors");

/// Reads a text file whole. Errors: not_found, io, corrupt (not UTF-8).
std::string read_text_file(const std::filesystem::path& path);

}  // namespace halfbyte
